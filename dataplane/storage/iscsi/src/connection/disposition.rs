//! How the initiator goes on after a command ended.

use super::tasks::Outcome;
use crate::lun::is_transient;
use crate::scsi::{Sense, sense_key, status};
use block::Status;

/// How the initiator goes on after a command ended (Linux: disposition).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// The command is over, with this status.
    End(Status),
    /// The command had no effect: send it again now.
    Retry,
    /// Send the command again after a while.
    RetryLater,
    /// The session is of no use: the unit is gone from it. Log in again and send it then.
    Relogin,
}

/// News of the unit in a command's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// The capacity may have changed: ask.
    pub(crate) capacity: bool,
    /// REPORT LUNS would answer something else than before.
    pub(crate) luns: bool,
}

/// Decides how the initiator goes on after a command ended.
pub(crate) fn decide_disposition(outcome: Outcome) -> (Disposition, News) {
    let none = News::default();
    match outcome {
        Outcome::Good => (Disposition::End(Status::Ok), none),
        Outcome::Incomplete => (Disposition::End(Status::IoError), none),
        Outcome::Aborted => (Disposition::Retry, none),
        Outcome::Failed { status: status::CHECK_CONDITION, sense } => (disposition_of_sense(sense), news(sense)),
        Outcome::Failed { status: status::BUSY | status::TASK_SET_FULL | status::TASK_ABORTED, .. } => {
            (Disposition::RetryLater, none)
        }
        Outcome::Failed { .. } => (Disposition::End(Status::IoError), none),
    }
}

fn disposition_of_sense(sense: Sense) -> Disposition {
    match (sense.key, sense.asc, sense.ascq) {
        (sense_key::NO_SENSE | sense_key::RECOVERED_ERROR, ..) => Disposition::End(Status::Ok),
        // The target did not begin the command that it reports a unit attention for (SAM-5 5.14).
        (sense_key::UNIT_ATTENTION, ..) => Disposition::Retry,
        _ if is_transient(sense) => Disposition::RetryLater,
        // 25/00 while a target starts: the target is there before its units are.
        (sense_key::ILLEGAL_REQUEST, 0x25, _) => Disposition::Relogin,
        (sense_key::ILLEGAL_REQUEST, 0x20, _) => Disposition::End(Status::Unsupported),
        (sense_key::DATA_PROTECT, 0x27, 0x07) => Disposition::End(Status::NoSpace),
        _ => Disposition::End(Status::IoError),
    }
}

/// The news of the unit in sense data (SPC-6 annex F).
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

    fn decided(status: u8, key: u8, asc: u8, ascq: u8) -> (Disposition, News) {
        decide_disposition(Outcome::Failed { status, sense: Sense { key, asc, ascq } })
    }

    #[test]
    fn unit_attentions_are_retried_and_reported() {
        assert_eq!(decided(2, 6, 0x29, 0), (Disposition::Retry, News::default()));
        assert_eq!(decided(2, 6, 0x2a, 9), (Disposition::Retry, News { capacity: true, luns: false }));
        assert_eq!(decided(2, 6, 0x3f, 0xe), (Disposition::Retry, News { capacity: true, luns: true }));
        assert_eq!(decided(2, 6, 0x2a, 6), (Disposition::Retry, News::default()), "ALUA state changed");
    }

    #[test]
    fn transient_conditions_are_retried_later() {
        for status in [8, 0x28, 0x40] {
            assert_eq!(decided(status, 0, 0, 0).0, Disposition::RetryLater);
        }
        assert_eq!(decided(2, 2, 4, 1).0, Disposition::RetryLater, "becoming ready");
        assert_eq!(decided(2, 0xb, 0, 0).0, Disposition::RetryLater, "aborted");
        assert_eq!(decided(2, 5, 0x25, 0).0, Disposition::Relogin, "no such LUN, yet");
    }

    #[test]
    fn permanent_conditions_end_the_request() {
        assert_eq!(decided(2, 3, 0x11, 0).0, Disposition::End(Status::IoError), "medium error");
        assert_eq!(decided(2, 5, 0x20, 0).0, Disposition::End(Status::Unsupported));
        assert_eq!(decided(2, 7, 0x27, 7).0, Disposition::End(Status::NoSpace));
        assert_eq!(decided(2, 2, 0x3a, 0).0, Disposition::End(Status::IoError), "medium not present");
        assert_eq!(decided(0x18, 0, 0, 0).0, Disposition::End(Status::IoError), "reservation conflict");
        assert_eq!(decided(2, 5, 0x21, 0), (Disposition::End(Status::IoError), News { capacity: true, luns: false }));
        assert_eq!(decide_disposition(Outcome::Incomplete).0, Disposition::End(Status::IoError));
    }
}
