//! What becomes of a command that did not end well.

use super::tasks::Outcome;
use crate::lun::is_transient;
use crate::scsi::{Sense, sense_key, status};
use block::Status;

/// What becomes of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is over.
    End(Status),
    /// It had no effect: send it again now.
    Again,
    /// Send it again after a while.
    Later,
    /// The session is of no use: the unit is gone from it. Log in again and send it then.
    Relogin,
}

/// What a command's end tells about the unit, apart from the command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// The capacity may have changed: ask.
    pub(crate) capacity: bool,
    /// REPORT LUNS would answer something else than before.
    pub(crate) luns: bool,
}

/// What follows from how a command ended.
pub(crate) fn judge(outcome: Outcome) -> (Verdict, News) {
    let none = News::default();
    match outcome {
        Outcome::Good => (Verdict::End(Status::Ok), none),
        Outcome::Incomplete => (Verdict::End(Status::IoError), none),
        Outcome::Aborted => (Verdict::Again, none),
        Outcome::Failed { status: status::CHECK_CONDITION, sense } => (judge_sense(sense), news(sense)),
        Outcome::Failed { status: status::BUSY | status::TASK_SET_FULL | status::TASK_ABORTED, .. } => {
            (Verdict::Later, none)
        }
        Outcome::Failed { .. } => (Verdict::End(Status::IoError), none),
    }
}

fn judge_sense(sense: Sense) -> Verdict {
    match (sense.key, sense.asc, sense.ascq) {
        (sense_key::NO_SENSE | sense_key::RECOVERED_ERROR, ..) => Verdict::End(Status::Ok),
        // The target did not begin the command that it reports a unit attention for (SAM-5 5.14).
        (sense_key::UNIT_ATTENTION, ..) => Verdict::Again,
        _ if is_transient(sense) => Verdict::Later,
        // 25/00 while a target starts: the target is there before its units are.
        (sense_key::ILLEGAL_REQUEST, 0x25, _) => Verdict::Relogin,
        (sense_key::ILLEGAL_REQUEST, 0x20, _) => Verdict::End(Status::Unsupported),
        (sense_key::DATA_PROTECT, 0x27, 0x07) => Verdict::End(Status::NoSpace),
        _ => Verdict::End(Status::IoError),
    }
}

/// What sense data says about the unit (SPC-6 annex F).
pub(crate) fn news(sense: Sense) -> News {
    match (sense.key, sense.asc, sense.ascq) {
        (sense_key::UNIT_ATTENTION, 0x2a, 0x09) => News { capacity: true, luns: false },
        (sense_key::UNIT_ATTENTION, 0x3f, 0x0e) => News { capacity: true, luns: true },
        // Out of range: the disk may have become smaller.
        (sense_key::ILLEGAL_REQUEST, 0x21, 0x00) => News { capacity: true, luns: false },
        _ => News::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: u8, key: u8, asc: u8, ascq: u8) -> (Verdict, News) {
        judge(Outcome::Failed { status, sense: Sense { key, asc, ascq } })
    }

    #[test]
    fn pitfall_10_unit_attentions_are_sent_again_and_heard() {
        assert_eq!(judged(2, 6, 0x29, 0), (Verdict::Again, News::default()));
        assert_eq!(judged(2, 6, 0x2a, 9), (Verdict::Again, News { capacity: true, luns: false }));
        assert_eq!(judged(2, 6, 0x3f, 0xe), (Verdict::Again, News { capacity: true, luns: true }));
        assert_eq!(judged(2, 6, 0x2a, 6), (Verdict::Again, News::default()), "ALUA state changed");
    }

    #[test]
    fn what_passes_by_itself_is_sent_again_later() {
        for status in [8, 0x28, 0x40] {
            assert_eq!(judged(status, 0, 0, 0).0, Verdict::Later);
        }
        assert_eq!(judged(2, 2, 4, 1).0, Verdict::Later, "becoming ready");
        assert_eq!(judged(2, 0xb, 0, 0).0, Verdict::Later, "aborted");
        assert_eq!(judged(2, 5, 0x25, 0).0, Verdict::Relogin, "no such LUN, yet");
    }

    #[test]
    fn what_does_not_pass_is_reported() {
        assert_eq!(judged(2, 3, 0x11, 0).0, Verdict::End(Status::IoError), "medium error");
        assert_eq!(judged(2, 5, 0x20, 0).0, Verdict::End(Status::Unsupported));
        assert_eq!(judged(2, 7, 0x27, 7).0, Verdict::End(Status::NoSpace));
        assert_eq!(judged(2, 2, 0x3a, 0).0, Verdict::End(Status::IoError), "medium not present");
        assert_eq!(judged(0x18, 0, 0, 0).0, Verdict::End(Status::IoError), "reservation conflict");
        assert_eq!(judged(2, 5, 0x21, 0), (Verdict::End(Status::IoError), News { capacity: true, luns: false }));
        assert_eq!(judge(Outcome::Incomplete).0, Verdict::End(Status::IoError));
    }
}
