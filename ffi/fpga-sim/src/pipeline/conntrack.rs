//! A TCP connection, and what it says of each packet: windows as Linux checks them, after Guido van Rooij, "Real Stateful TCP
//! Packet Filtering in IP Filter"; states and fields as `rte_flow_action_conntrack` has them.
//!
//! A packet is judged and goes on; nothing here drops or changes one. A packet that is not valid changes nothing here either.

use super::edit::Frame;
use super::segment::{Segment, control, is_after};

/// The window of the largest scaling factor (RFC 7323, section 2.2).
pub const MAX_WINDOW: u32 = 0xffff << MAX_SCALE;
/// The largest scaling factor.
pub const MAX_SCALE: u8 = 14;

/// The result of the check of a packet; bits of [`field::CONNTRACK`](super::key::field::CONNTRACK), as rte_flow has them.
pub mod judged {
    /// The packet is valid.
    pub const VALID: u8 = 1;
    /// The packet is valid and has changed the connection's state.
    pub const CHANGED: u8 = 2;
    /// The packet is invalid.
    pub const INVALID: u8 = 4;
    /// The connection judges no packets.
    pub const DISABLED: u8 = 8;
    /// The packet is not a whole segment of TCP with right checksums.
    pub const BAD: u8 = 16;
    /// All that can be said; nothing, of a packet that no connection has judged.
    pub const ALL: [u8; 6] = [0, VALID, VALID | CHANGED, INVALID, DISABLED, BAD];
}

/// Which of the two ends sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// The one that opened the connection.
    #[default]
    Original,
    /// The other one.
    Reply,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The SYN was answered.
    SynRecv,
    /// The answer was acknowledged.
    Established,
    /// One end has sent its FIN.
    FinWait,
    /// The first FIN was acknowledged.
    CloseWait,
    /// The other end has sent its FIN.
    LastAck,
    /// The second FIN was acknowledged, or the connection was reset.
    TimeWait,
}

/// The kind of a segment.
#[allow(missing_docs)] // named after the control bits
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Syn,
    SynAck,
    Fin,
    Ack,
    Rst,
}

/// One end, as a sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sender {
    /// Bits that its window is shifted by, if it is.
    pub scale: Option<u8>,
    /// Whether the sender has sent its FIN.
    pub close_initiated: bool,
    /// Whether the sender was sent an ACK.
    pub last_ack_seen: bool,
    /// Not all that it sent is acknowledged.
    pub data_unacked: bool,
    /// The sequence number behind all that it sent.
    pub sent_end: u32,
    /// How far it may send.
    pub reply_end: u32,
    /// The largest window that it offered.
    pub max_win: u32,
    /// The last that it acknowledged.
    pub max_ack: u32,
}

/// The last valid segment.
#[allow(missing_docs)] // named after the header's fields
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Last {
    pub direction: Direction,
    pub kind: Option<Kind>,
    pub window: u16,
    pub seq: u32,
    pub ack: u32,
    /// The sequence number behind it.
    pub end: u32,
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The port of the other end, for the application.
    pub peer_port: u16,
    /// The direction of the packets of rules that are put in from now on.
    pub direction: Direction,
    /// Whether the connection checks packets.
    pub enabled: bool,
    /// An ACK came after it was established.
    pub live: bool,
    /// Selective acknowledgments count.
    pub selective_ack: bool,
    /// An end has answered a doubtful RST by an ACK (RFC 5961, section 3.2).
    pub challenge_ack_passed: bool,
    /// The state is followed, and nothing else checked.
    pub liberal: bool,
    /// How far it is.
    pub state: State,
    /// An ACK may be so far behind: 65535 shifted by so many bits.
    pub max_ack_window: u8,
    /// So often in a row the same segment is valid again.
    pub retransmission_limit: u8,
    /// The end that opened it.
    pub original: Sender,
    /// The other end.
    pub reply: Sender,
    /// The last valid segment.
    pub last: Last,
    /// How often that came again.
    pub retransmissions: u8,
}

impl Connection {
    /// Changes all but the direction.
    pub fn set_state(&mut self, new: Connection) {
        *self = Connection { direction: self.direction, ..new };
    }

    /// Judges a packet of a direction, as [`judged`] has it.
    pub(super) fn judge(&mut self, direction: Direction, frame: &impl Frame) -> u8 {
        if !self.enabled {
            return judged::DISABLED;
        }
        let Some(segment) = Segment::read(frame) else { return judged::BAD };
        let last = self.last_of(direction, &segment);
        // A segment without data that comes again is no retransmission: an ACK may be repeated (RFC 5681, section 3.2).
        let again = last == self.last && segment.seq != segment.end;
        if !self.liberal {
            let fits = self.is_expected(direction, &segment) && self.is_in_window(direction, &segment);
            if !fits || again && self.retransmissions >= self.retransmission_limit {
                return judged::INVALID;
            }
        }
        let before = self.state;
        self.state = self.take(direction, &segment);
        self.retransmissions = if again { self.retransmissions.saturating_add(1) } else { 0 };
        self.last = last;
        if self.state == before { judged::VALID } else { judged::VALID | judged::CHANGED }
    }

    fn last_of(&self, direction: Direction, segment: &Segment) -> Last {
        let kind = if segment.has(control::RST) {
            Kind::Rst
        } else if segment.has(control::FIN) {
            Kind::Fin
        } else if !segment.has(control::SYN) {
            Kind::Ack
        } else if segment.has(control::ACK) {
            Kind::SynAck
        } else {
            Kind::Syn
        };
        let ack = segment.ack.unwrap_or(self.ends(direction).1.sent_end);
        Last { direction, kind: Some(kind), window: segment.window, seq: segment.seq, ack, end: segment.end }
    }

    /// The sender of a packet, and its receiver.
    fn ends(&self, direction: Direction) -> (&Sender, &Sender) {
        match direction {
            Direction::Original => (&self.original, &self.reply),
            Direction::Reply => (&self.reply, &self.original),
        }
    }

    /// Whether the connection is where such a segment can come.
    fn is_expected(&self, direction: Direction, segment: &Segment) -> bool {
        let (sender, receiver) = self.ends(direction);
        match (segment.has(control::SYN), segment.ack) {
            // One that comes again: the handshake is not over, or its end was lost.
            (true, None) => direction == Direction::Original && self.state == State::SynRecv,
            (true, Some(_)) => {
                direction == Direction::Reply && matches!(self.state, State::SynRecv | State::Established)
            }
            // RFC 5961, section 3.2: a RST below the window resets nothing.
            (false, _) if segment.has(control::RST) && sender.last_ack_seen => !is_after(receiver.max_ack, segment.seq),
            (false, _) => true,
        }
    }

    fn is_in_window(&self, direction: Direction, segment: &Segment) -> bool {
        let (sender, receiver) = self.ends(direction);
        let ack = self.acknowledged(receiver, segment).1;
        let max_ack_window = sender.max_win.max(0xffff << self.max_ack_window.min(MAX_SCALE));
        let not_too_far = !is_after(segment.seq, sender.reply_end);
        let not_long_ago = !is_after(sender.sent_end.wrapping_sub(receiver.max_win), segment.end);
        let of_what_was_sent = !is_after(ack, receiver.sent_end);
        let not_of_long_ago = !is_after(receiver.sent_end.wrapping_sub(max_ack_window), ack);
        not_too_far && (not_long_ago || receiver.max_win == 0) && of_what_was_sent && not_of_long_ago
    }

    /// The acknowledged sequence numbers of a segment, cumulative and selective; without ACK all that were sent.
    fn acknowledged(&self, receiver: &Sender, segment: &Segment) -> (u32, u32) {
        let ack = segment.ack.unwrap_or(receiver.sent_end);
        (ack, segment.sack.filter(|_| self.selective_ack).unwrap_or(ack))
    }

    /// Takes a valid segment. Returns the state then.
    fn take(&mut self, direction: Direction, segment: &Segment) -> State {
        if segment.has(control::RST) {
            return if self.resets(direction, segment) { State::TimeWait } else { self.state };
        }
        let answers = self.last.kind == Some(Kind::Rst) && self.last.direction != direction;
        self.challenge_ack_passed |= answers && self.state != State::TimeWait && segment.ack.is_some();
        self.live |= self.state != State::SynRecv && segment.ack.is_some();
        self.slide(direction, segment);
        let state = if segment.has(control::FIN) { self.close(direction) } else { self.state };
        let fins_acked = [&self.original, &self.reply].iter().all(|end| !(end.close_initiated && end.data_unacked));
        match state {
            State::SynRecv if direction == Direction::Original && segment.ack.is_some() => State::Established,
            State::FinWait if segment.ack.is_some() && fins_acked => State::CloseWait,
            State::LastAck if segment.ack.is_some() && fins_acked => State::TimeWait,
            state => state,
        }
    }

    /// Whether an RST ends the connection. One that is not at the very place where the receiver waits does not, and has it ask by
    /// an ACK (RFC 5961, section 3.2).
    fn resets(&self, direction: Direction, segment: &Segment) -> bool {
        let (sender, receiver) = self.ends(direction);
        let follows =
            self.last.direction == direction && self.last.kind != Some(Kind::Rst) && segment.seq == self.last.end;
        let exact = segment.seq == receiver.max_ack || follows;
        self.state != State::Established || !sender.last_ack_seen || exact || self.liberal
    }

    /// Takes note of a FIN. Returns the state, whatever it acknowledges.
    fn close(&mut self, direction: Direction) -> State {
        let sender = match direction {
            Direction::Original => &mut self.original,
            Direction::Reply => &mut self.reply,
        };
        let first = !std::mem::replace(&mut sender.close_initiated, true);
        match self.state {
            State::SynRecv | State::Established => State::FinWait,
            State::FinWait | State::CloseWait if first => State::LastAck,
            state => state,
        }
    }

    /// Takes note of what was sent, acknowledged and offered.
    fn slide(&mut self, direction: Direction, segment: &Segment) {
        let (ack, sack) = self.acknowledged(self.ends(direction).1, segment);
        let (sender, receiver) = match direction {
            Direction::Original => (&mut self.original, &mut self.reply),
            Direction::Reply => (&mut self.reply, &mut self.original),
        };
        // The window of a SYN is never scaled (RFC 7323, section 2.2).
        let scale = sender.scale.filter(|_| !segment.has(control::SYN)).unwrap_or(0).min(MAX_SCALE);
        let window = u32::from(segment.window) << scale;
        sender.max_win = sender.max_win.max(window.saturating_add(sack.wrapping_sub(ack))).min(MAX_WINDOW);
        if is_after(segment.end, sender.sent_end) {
            sender.sent_end = segment.end;
            sender.data_unacked = true;
        }
        if receiver.max_win > 0 && is_after(segment.end, sender.reply_end) {
            let over = segment.end.wrapping_sub(sender.reply_end);
            receiver.max_win = receiver.max_win.saturating_add(over).min(MAX_WINDOW);
        }
        if segment.ack.is_some() {
            if !receiver.last_ack_seen || is_after(ack, sender.max_ack) {
                sender.max_ack = ack;
            }
            receiver.last_ack_seen = true;
            receiver.data_unacked &= is_after(receiver.sent_end, ack);
        }
        // Into a closed window one byte may be sent, to ask whether it is open again.
        let may_send = sack.wrapping_add(window.max(1));
        if is_after(may_send, receiver.reply_end) {
            receiver.reply_end = may_send;
        }
    }
}

#[cfg(test)]
mod tests;
