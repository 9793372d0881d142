//! A connection as rte_flow has it, and as the device has it.

use super::{Context, Refusal};
use crate::pipeline::{Connection, Direction, Last, MAX_SCALE, MAX_WINDOW, Sender, State, TcpKind};
use dpdk_sys as sys;
use std::ffi::CStr;
use std::ptr::null;

/// `scale` of a sender whose windows are not scaled.
const NO_SCALE: u32 = 0xf;

const STATES: [(sys::rte_flow_conntrack_state, State); 6] = [
    (sys::RTE_FLOW_CONNTRACK_STATE_SYN_RECV, State::SynRecv),
    (sys::RTE_FLOW_CONNTRACK_STATE_ESTABLISHED, State::Established),
    (sys::RTE_FLOW_CONNTRACK_STATE_FIN_WAIT, State::FinWait),
    (sys::RTE_FLOW_CONNTRACK_STATE_CLOSE_WAIT, State::CloseWait),
    (sys::RTE_FLOW_CONNTRACK_STATE_LAST_ACK, State::LastAck),
    (sys::RTE_FLOW_CONNTRACK_STATE_TIME_WAIT, State::TimeWait),
];

const KINDS: [(sys::rte_flow_conntrack_tcp_last_index, Option<TcpKind>); 6] = [
    (sys::RTE_FLOW_CONNTRACK_FLAG_NONE, None),
    (sys::RTE_FLOW_CONNTRACK_FLAG_SYN, Some(TcpKind::Syn)),
    (sys::RTE_FLOW_CONNTRACK_FLAG_SYNACK, Some(TcpKind::SynAck)),
    (sys::RTE_FLOW_CONNTRACK_FLAG_FIN, Some(TcpKind::Fin)),
    (sys::RTE_FLOW_CONNTRACK_FLAG_ACK, Some(TcpKind::Ack)),
    (sys::RTE_FLOW_CONNTRACK_FLAG_RST, Some(TcpKind::Rst)),
];

/// The connection that an application describes.
pub(crate) fn connection(
    context: &Context,
    conf: Option<&sys::rte_flow_action_conntrack>,
) -> Result<Connection, Refusal> {
    let cause = conf.map_or(null(), std::ptr::from_ref);
    let invalid = |message: &'static CStr| Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ACTION_CONF, cause, message);
    let conf = conf.ok_or_else(|| invalid(c"CONNTRACK: with a connection"))?;
    if !context.ports.contains(&conf.peer_port) {
        return Err(invalid(c"CONNTRACK: peer_port is not a port of this device"));
    }
    if conf.max_ack_window > MAX_SCALE {
        return Err(invalid(c"CONNTRACK: max_ack_window is 14 at most"));
    }
    if conf.original_dir.max_win.max(conf.reply_dir.max_win) > MAX_WINDOW {
        return Err(invalid(c"CONNTRACK: max_win is 65535 shifted by 14 at most"));
    }
    let state = STATES.iter().find(|(theirs, _)| *theirs == conf.state);
    let kind = KINDS.iter().find(|(theirs, _)| *theirs == conf.last_index);
    let last = Last {
        direction: direction(conf.last_direction()),
        kind: kind.ok_or_else(|| invalid(c"CONNTRACK: last_index is one flag, or none"))?.1,
        window: conf.last_window,
        seq: conf.last_seq,
        ack: conf.last_ack,
        end: conf.last_end,
    };
    Ok(Connection {
        peer_port: conf.peer_port,
        direction: direction(conf.is_original_dir()),
        enabled: conf.enable() != 0,
        live: conf.live_connection() != 0,
        selective_ack: conf.selective_ack() != 0,
        challenge_ack_passed: conf.challenge_ack_passed() != 0,
        liberal: conf.liberal_mode() != 0,
        state: state.ok_or_else(|| invalid(c"CONNTRACK: there is no such state"))?.1,
        max_ack_window: conf.max_ack_window,
        retransmission_limit: conf.retransmission_limit,
        original: sender(&conf.original_dir),
        reply: sender(&conf.reply_dir),
        last,
        retransmissions: 0,
    })
}

/// The direction that `is_original_dir` or `last_direction` names.
pub(crate) fn direction(is_original: u32) -> Direction {
    if is_original != 0 { Direction::Original } else { Direction::Reply }
}

fn sender(conf: &sys::rte_flow_tcp_dir_param) -> Sender {
    Sender {
        scale: (conf.scale() != NO_SCALE).then(|| conf.scale() as u8),
        close_initiated: conf.close_initiated() != 0,
        last_ack_seen: conf.last_ack_seen() != 0,
        data_unacked: conf.data_unacked() != 0,
        sent_end: conf.sent_end,
        reply_end: conf.reply_end,
        max_win: conf.max_win,
        max_ack: conf.max_ack,
    }
}

/// A connection as an application is shown it.
pub(crate) fn show_connection(connection: &Connection) -> sys::rte_flow_action_conntrack {
    let is_original = |direction| u32::from(direction == Direction::Original);
    let state = STATES.iter().find(|(_, ours)| *ours == connection.state);
    let kind = KINDS.iter().find(|(_, ours)| *ours == connection.last.kind);
    let mut shown = sys::rte_flow_action_conntrack {
        peer_port: connection.peer_port,
        state: state.map_or(0, |state| state.0),
        max_ack_window: connection.max_ack_window,
        retransmission_limit: connection.retransmission_limit,
        original_dir: show_sender(&connection.original),
        reply_dir: show_sender(&connection.reply),
        last_window: connection.last.window,
        last_index: kind.map_or(0, |kind| kind.0),
        last_seq: connection.last.seq,
        last_ack: connection.last.ack,
        last_end: connection.last.end,
        ..Default::default()
    };
    shown.set_is_original_dir(is_original(connection.direction));
    shown.set_enable(connection.enabled.into());
    shown.set_live_connection(connection.live.into());
    shown.set_selective_ack(connection.selective_ack.into());
    shown.set_challenge_ack_passed(connection.challenge_ack_passed.into());
    shown.set_last_direction(is_original(connection.last.direction));
    shown.set_liberal_mode(connection.liberal.into());
    shown
}

fn show_sender(sender: &Sender) -> sys::rte_flow_tcp_dir_param {
    let mut shown = sys::rte_flow_tcp_dir_param {
        sent_end: sender.sent_end,
        reply_end: sender.reply_end,
        max_win: sender.max_win,
        max_ack: sender.max_ack,
        ..Default::default()
    };
    shown.set_scale(sender.scale.map_or(NO_SCALE, u32::from));
    shown.set_close_initiated(sender.close_initiated.into());
    shown.set_last_ack_seen(sender.last_ack_seen.into());
    shown.set_data_unacked(sender.data_unacked.into());
    shown
}
