//! How the target departs from an honest one.

use std::ops::Range;
use std::time::Duration;

/// One act of misbehaviour, done to one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misbehaviour {
    /// Never answers this command; the rest goes on.
    DropCommand,
    /// Never answers this connection again, but leaves it open.
    Silence,
    /// Cuts the connection.
    Reset,
    /// Answers bytes that are no PDU.
    Garbage,
    /// Flips a bit under a header digest.
    HeaderDigestFlip,
    /// Flips a bit under a data digest.
    DataDigestFlip,
    /// A read that succeeds with half of its data.
    ShortRead,
    /// A C2HData PDU with SUCCESS and without LAST.
    SuccessWithoutLast,
    /// Data at an offset that is not the next.
    WrongDataOffset,
    /// More data than asked for.
    ExcessData,
    /// An answer to a command that is not outstanding.
    UnknownCid,
    /// The answer twice.
    AnswerTwice,
    /// An R2T at an offset that is not the next.
    R2tWrongOffset,
    /// An R2T of no bytes.
    R2tEmpty,
    /// An R2T beyond the command's data.
    R2tTooLong,
    /// An R2T for a command that reads.
    R2tForRead,
    /// More R2Ts at once than the initiator offered.
    R2tFlood,
    /// A write fails before its data was asked for, or in the middle of it.
    FailWriteEarly,
    /// A write succeeds before its data was asked for.
    AcceptWriteEarly,
    /// A PDU that says it is 4 GiB long.
    HugePlen,
    /// A second ICResp.
    IcRespAgain,
    /// A terminate request.
    TermReq,
    /// Fails with a status that invites a retry.
    TransientError,
    /// Fails with a status that forbids one.
    MediaError,
}

impl Misbehaviour {
    /// All of them, for tests that want each.
    pub const ALL: [Misbehaviour; 24] = [
        Misbehaviour::DropCommand,
        Misbehaviour::Silence,
        Misbehaviour::Reset,
        Misbehaviour::Garbage,
        Misbehaviour::HeaderDigestFlip,
        Misbehaviour::DataDigestFlip,
        Misbehaviour::ShortRead,
        Misbehaviour::SuccessWithoutLast,
        Misbehaviour::WrongDataOffset,
        Misbehaviour::ExcessData,
        Misbehaviour::UnknownCid,
        Misbehaviour::AnswerTwice,
        Misbehaviour::R2tWrongOffset,
        Misbehaviour::R2tEmpty,
        Misbehaviour::R2tTooLong,
        Misbehaviour::R2tForRead,
        Misbehaviour::R2tFlood,
        Misbehaviour::FailWriteEarly,
        Misbehaviour::AcceptWriteEarly,
        Misbehaviour::HugePlen,
        Misbehaviour::IcRespAgain,
        Misbehaviour::TermReq,
        Misbehaviour::TransientError,
        Misbehaviour::MediaError,
    ];
}

/// Departures from an honest target. The default has none.
#[derive(Clone, Debug)]
pub struct Faults {
    /// CPDA of ICResp: alignment of the initiator's data.
    pub cpda: u8,
    /// MAXH2CDATA of ICResp.
    pub max_h2c_data: u32,
    /// Answers ICReq without the digests it asks for.
    pub refuse_digests: bool,
    /// Bytes of an R2T at most.
    pub r2t_len: u32,
    /// R2Ts outstanding on a command, at most what the initiator offers.
    pub r2ts: u32,
    /// Bytes of a C2HData PDU at most.
    pub c2h_len: u32,
    /// PDO of C2HData is a multiple of this many bytes: a power of two from 4 to 128.
    pub c2h_alignment: usize,
    /// Never uses the SUCCESS flag.
    pub no_success_flag: bool,
    /// Bytes given to the network at once at most.
    pub output_limit: usize,
    /// Time from an I/O command to its execution and answer, drawn for each; so answers come out of order.
    pub delay: Range<Duration>,
    /// Executes writes that were under way when their connection died, at any time until the controller must have stopped:
    /// allowed by the specification, and deadly for an initiator that does not wait.
    pub late_writes: bool,
    /// Does not answer Keep Alive.
    pub ignore_keep_alive: bool,
    /// Never becomes ready.
    pub never_ready: bool,
    /// Misbehaviour to I/O commands, by their number from the start of the target.
    pub script: Vec<(u64, Misbehaviour)>,
}

impl Default for Faults {
    fn default() -> Faults {
        Faults {
            cpda: 0,
            max_h2c_data: 128 << 10,
            refuse_digests: false,
            r2t_len: 1 << 20,
            r2ts: 1,
            c2h_len: 1 << 20,
            c2h_alignment: 4,
            no_success_flag: false,
            output_limit: usize::MAX,
            delay: Duration::ZERO..Duration::ZERO,
            late_writes: false,
            ignore_keep_alive: false,
            never_ready: false,
            script: Vec::new(),
        }
    }
}
