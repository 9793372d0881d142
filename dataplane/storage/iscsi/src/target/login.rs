//! Login from the target's side.

use super::{Faults, TargetConfig};
use crate::chap::{self, ChapAlgorithm};
use crate::pdu::{Bhs, Isid, Login, Stage};
use crate::text::{self, Pairs};

/// The result of a login.
#[derive(Clone, Debug)]
pub(super) struct Settled {
    pub(super) initiator: String,
    pub(super) isid: Isid,
    pub(super) discovery: bool,
    pub(super) header_digest: bool,
    pub(super) data_digest: bool,
    pub(super) initial_r2t: bool,
    pub(super) immediate_data: bool,
    pub(super) first_burst: u32,
    pub(super) max_burst: u32,
    pub(super) max_r2t: u32,
    /// The initiator's MaxRecvDataSegmentLength.
    pub(super) send_segment: u32,
}

/// The answer to a login request.
pub(super) enum Reply {
    /// Send this response; the login goes on.
    More(Bhs, Vec<u8>),
    /// Send this response: the full-feature phase begins.
    Done(Bhs, Vec<u8>),
    /// Send this response and close.
    Refuse(Bhs, Vec<u8>),
}

/// A refusal: Status-Class and Status-Detail.
type Refused = u16;
const INITIATOR_ERROR: Refused = 0x0200;
const AUTHENTICATION_FAILED: Refused = 0x0201;
const NOT_AUTHORIZED: Refused = 0x0202;
const NOT_FOUND: Refused = 0x0203;
const MISSING_PARAMETER: Refused = 0x0207;

/// A login under way.
#[derive(Debug)]
pub(super) struct LoginTarget {
    pub(super) settled: Settled,
    chap: Chap,
    text: Vec<u8>,
    outgoing: Vec<u8>,
    seed: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Chap {
    NotBegun,
    Chosen,
    Challenged(ChapAlgorithm, Vec<u8>),
    Done,
}

impl LoginTarget {
    pub(super) fn new(seed: u64) -> LoginTarget {
        LoginTarget {
            settled: Settled {
                initiator: String::new(),
                isid: [0; 6],
                discovery: false,
                header_digest: false,
                data_digest: false,
                initial_r2t: true,
                immediate_data: true,
                first_burst: 65_536,
                max_burst: 262_144,
                max_r2t: 1,
                send_segment: 8192,
            },
            chap: Chap::NotBegun,
            text: Vec::new(),
            outgoing: Vec::new(),
            seed,
        }
    }

    pub(super) fn on_request(&mut self, bhs: &Bhs, segment: &[u8], config: &TargetConfig, faults: &Faults) -> Reply {
        let Some(request) = Login::decode(bhs) else { return refuse(bhs, INITIATOR_ERROR) };
        self.settled.isid = request.isid;
        if let Some((address, permanent)) = &faults.redirect {
            let mut pairs = Pairs::default();
            pairs.push("TargetAddress", format!("{address},1"));
            let (login, text) = (response(&request, 0x0101 + u16::from(*permanent)), pairs.into_bytes());
            return Reply::Refuse(with_len(login.encode_response(), &text), text);
        }
        if let Some(status) = faults.login_status {
            return refuse(bhs, status);
        }
        if text::append(&mut self.text, segment).is_err() {
            return refuse(bhs, INITIATOR_ERROR);
        }
        if !self.outgoing.is_empty() {
            return self.next_piece(&request, faults);
        }
        if request.goes_on {
            return Reply::More(with_len(response(&request, 0).encode_response(), &[]), Vec::new());
        }
        let text = std::mem::take(&mut self.text);
        match self.answer(&request, &text, config, faults) {
            Ok(pairs) => {
                self.outgoing = pairs.into_bytes();
                self.next_piece(&request, faults)
            }
            Err(status) => refuse(bhs, status),
        }
    }

    /// The next PDU of the answer; it leaves the stage when it is the last and nothing is left to prove.
    fn next_piece(&mut self, request: &Login, faults: &Faults) -> Reply {
        let limit = if faults.text_chunk == 0 { 8192 } else { faults.text_chunk };
        let rest = self.outgoing.split_off(self.outgoing.len().min(limit));
        let text = std::mem::replace(&mut self.outgoing, rest);
        let mut login = response(request, 0);
        login.goes_on = !self.outgoing.is_empty();
        login.transit = request.transit && !login.goes_on && self.may_leave(request.current);
        let done = login.transit && request.next == Stage::FullFeature;
        if done {
            login.tsih = 1;
        }
        let bhs = with_len(login.encode_response(), &text);
        if done { Reply::Done(bhs, text) } else { Reply::More(bhs, text) }
    }

    fn may_leave(&self, stage: Stage) -> bool {
        stage == Stage::Operational || self.chap == Chap::Done
    }

    fn answer(
        &mut self,
        request: &Login,
        text: &[u8],
        config: &TargetConfig,
        faults: &Faults,
    ) -> Result<Pairs, Refused> {
        let mut pairs = Pairs::default();
        let keys: Result<Vec<(&str, &str)>, _> = text::parse(text).collect();
        let keys = keys.map_err(|_| INITIATOR_ERROR)?;
        let find = |key: &str| keys.iter().find(|(k, _)| *k == key).map(|(_, value)| *value);
        if self.settled.initiator.is_empty() {
            self.identify(&find, config)?;
            if !self.settled.discovery {
                pairs.push("TargetPortalGroupTag", config.portal_group);
            }
        }
        if request.current == Stage::Security {
            self.authenticate(&find, config, faults, &mut pairs)?;
        } else {
            if config.auth.initiator.is_some() && self.chap != Chap::Done {
                return Err(AUTHENTICATION_FAILED);
            }
            for (key, value) in &keys {
                self.settle(key, value, config, &mut pairs)?;
            }
        }
        Ok(pairs)
    }

    fn identify<'a>(&mut self, find: &impl Fn(&str) -> Option<&'a str>, config: &TargetConfig) -> Result<(), Refused> {
        let initiator = find("InitiatorName").ok_or(MISSING_PARAMETER)?;
        self.settled.discovery = find("SessionType") == Some("Discovery");
        if !self.settled.discovery {
            let target = find("TargetName").ok_or(MISSING_PARAMETER)?;
            if target != config.iqn {
                return Err(NOT_FOUND);
            }
        }
        if !config.initiators.is_empty() && !config.initiators.iter().any(|i| i == initiator) {
            return Err(NOT_AUTHORIZED);
        }
        self.settled.initiator = initiator.to_owned();
        Ok(())
    }

    fn authenticate<'a>(
        &mut self,
        find: &impl Fn(&str) -> Option<&'a str>,
        config: &TargetConfig,
        faults: &Faults,
        pairs: &mut Pairs,
    ) -> Result<(), Refused> {
        match std::mem::replace(&mut self.chap, Chap::Done) {
            Chap::NotBegun => {
                let offered = find("AuthMethod").unwrap_or("None");
                match (&config.auth.initiator, offered.split(',').any(|m| m == "CHAP")) {
                    (Some(_), false) => return Err(AUTHENTICATION_FAILED),
                    (Some(_), true) => {
                        self.chap = Chap::Chosen;
                        pairs.push("AuthMethod", "CHAP");
                    }
                    (None, _) if offered.split(',').any(|m| m == "None") => pairs.push("AuthMethod", "None"),
                    (None, _) => return Err(AUTHENTICATION_FAILED),
                }
            }
            Chap::Chosen => self.challenge(find("CHAP_A").ok_or(MISSING_PARAMETER)?, config, pairs)?,
            Chap::Challenged(algorithm, challenge) => {
                let expected = config.auth.initiator.as_ref().ok_or(AUTHENTICATION_FAILED)?;
                let response = find("CHAP_R").and_then(text::binary).ok_or(AUTHENTICATION_FAILED)?;
                let right = algorithm.respond(1, &expected.secret, &challenge);
                if find("CHAP_N") != Some(&expected.name) || !chap::same(&response, &right) {
                    return Err(AUTHENTICATION_FAILED);
                }
                let (Some(identifier), Some(theirs)) = (find("CHAP_I"), find("CHAP_C").and_then(text::binary)) else {
                    return Ok(());
                };
                let identifier = identifier.parse().map_err(|_| INITIATOR_ERROR)?;
                let own = config.auth.target.as_ref().ok_or(AUTHENTICATION_FAILED)?;
                let secret = if faults.reflect_chap { &expected.secret } else { &own.secret };
                pairs.push("CHAP_N", &own.name);
                pairs.push("CHAP_R", text::to_hex(&algorithm.respond(identifier, secret, &theirs)));
            }
            Chap::Done => {}
        }
        Ok(())
    }

    fn challenge(&mut self, offered: &str, config: &TargetConfig, pairs: &mut Pairs) -> Result<(), Refused> {
        let allowed = &config.auth.algorithms;
        let algorithm = offered
            .split(',')
            .filter_map(|number| ChapAlgorithm::from_number(text::number(number)?))
            .find(|a| allowed.is_empty() || allowed.contains(a))
            .ok_or(AUTHENTICATION_FAILED)?;
        // The seed differs from login to login; a hash of it is a challenge that does not repeat.
        let challenge = algorithm.respond(1, &config.iqn, &self.seed.to_be_bytes());
        pairs.push("CHAP_A", algorithm.number());
        pairs.push("CHAP_I", 1);
        pairs.push("CHAP_C", text::to_hex(&challenge));
        self.chap = Chap::Challenged(algorithm, challenge);
        Ok(())
    }

    /// Answers one operational key.
    fn settle(&mut self, key: &str, value: &str, config: &TargetConfig, pairs: &mut Pairs) -> Result<(), Refused> {
        let number = || text::number(value).ok_or(INITIATOR_ERROR);
        let s = &mut self.settled;
        match key {
            "HeaderDigest" | "DataDigest" => {
                let offers = |digest| value.split(',').any(|v| v == digest);
                let on = match (config.digests && offers("CRC32C"), offers("None")) {
                    (true, _) => true,
                    (false, true) => false,
                    (false, false) => return Err(INITIATOR_ERROR),
                };
                *if key == "HeaderDigest" { &mut s.header_digest } else { &mut s.data_digest } = on;
                pairs.push(key, if on { "CRC32C" } else { "None" });
            }
            "MaxRecvDataSegmentLength" => {
                s.send_segment = number()?;
                pairs.push(key, config.recv_segment);
            }
            "InitialR2T" => {
                s.initial_r2t = config.initial_r2t || value == "Yes";
                pairs.push(key, if s.initial_r2t { "Yes" } else { "No" });
            }
            "ImmediateData" => {
                s.immediate_data = config.immediate_data && value == "Yes";
                pairs.push(key, if s.immediate_data { "Yes" } else { "No" });
            }
            "MaxBurstLength" => {
                s.max_burst = number()?.min(config.max_burst);
                pairs.push(key, s.max_burst);
            }
            "FirstBurstLength" => {
                s.first_burst = number()?.min(config.first_burst);
                pairs.push(key, s.first_burst);
            }
            "MaxOutstandingR2T" => {
                s.max_r2t = number()?.min(config.max_r2t);
                pairs.push(key, s.max_r2t);
            }
            "MaxConnections"
            | "DataPDUInOrder"
            | "DataSequenceInOrder"
            | "DefaultTime2Wait"
            | "DefaultTime2Retain"
            | "ErrorRecoveryLevel" => pairs.push(key, value),
            "InitiatorName" | "SessionType" | "TargetName" | "InitiatorAlias" => {}
            _ => pairs.push(key, "NotUnderstood"),
        }
        Ok(())
    }
}

fn response(request: &Login, status: u16) -> Login {
    Login { transit: false, goes_on: false, status, ..*request }
}

fn with_len(mut bhs: Bhs, text: &[u8]) -> Bhs {
    bhs.set_data_len(text.len());
    bhs
}

fn refuse(request: &Bhs, status: u16) -> Reply {
    let blank = Login {
        transit: false,
        goes_on: false,
        current: Stage::Security,
        next: Stage::Security,
        isid: request.0[8..14].try_into().expect("6 bytes"),
        tsih: 0,
        itt: request.itt(),
        status,
    };
    Reply::Refuse(blank.encode_response(), Vec::new())
}
