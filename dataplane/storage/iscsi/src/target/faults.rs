//! How a target misbehaves, on demand.

use clock::Cycles;

/// A wrong R2T.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrongR2t {
    /// For data behind a gap.
    Offset,
    /// For more than the command has.
    TooMuch,
    /// For no data.
    Empty,
    /// With a number that was used before.
    Number,
    /// For a command that does not write.
    ForRead,
}

/// Departures from an honest target. The default is an honest target. "Every n" counts from 1; 0 is never.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Bytes sent at once; 0 for no limit. With 1 every PDU is split at every byte.
    pub chunk: usize,
    /// The connection is cut after so many bytes were sent, wherever that is in a PDU.
    pub cut_after_bytes: Option<u64>,
    /// No more answers after so many PDUs; the connection stays.
    pub silent_after: Option<u64>,
    /// Random bytes instead of answers after so many PDUs.
    pub garbage_after: Option<u64>,
    /// One bit of every n-th header digest is flipped.
    pub flip_header_digest_every: u64,
    /// One bit of every n-th data digest is flipped.
    pub flip_data_digest_every: u64,
    /// R2Ts are wrong in this way.
    pub wrong_r2t: Option<WrongR2t>,
    /// Every n-th read moves less data than asked for, with good status.
    pub short_data_every: u64,
    /// Every n-th command finds the unit busy.
    pub busy_every: u64,
    /// Every n-th command is never answered.
    pub swallow_every: u64,
    /// Reads and writes are answered at most so late, at random and so in another order; writes are carried out as late as they
    /// are answered, also when the connection is gone by then.
    pub delay: Cycles,
    /// Sessions are not ended by a login with the same name: old writes are carried out under the new session.
    pub forget_reinstatement: bool,
    /// Status of every login.
    pub login_status: Option<u16>,
    /// Logins are sent elsewhere: `host:port`, and whether for good.
    pub redirect: Option<(String, bool)>,
    /// The challenge of CHAP is the initiator's own secret reflected: a response made with the wrong secret.
    pub reflect_chap: bool,
    /// Text answers are split into PDUs of so many bytes; 0 for no split.
    pub text_chunk: usize,
}
