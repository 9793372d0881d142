//! Login from the initiator's side: stages, negotiation of every key, CHAP ([RFC 7143 § 6], 11.12, 12, 13).
//!
//! Sans-IO: [`LoginMachine::start`] gives the first request, [`LoginMachine::on_response`] takes each response and says what
//! follows. Every key is sent explicitly, because targets differ in the defaults they assume.
//!
//! [RFC 7143 § 6]: https://www.rfc-editor.org/rfc/rfc7143#section-6

use crate::chap::{self, ChapAlgorithm, Credentials};
use crate::pdu::{Bhs, Isid, Login, Stage};
use crate::text::{self, Pairs, TextError};

/// Whether a digest (CRC32C) is wanted on headers or on data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DigestPolicy {
    /// Never.
    #[default]
    None,
    /// If the target agrees.
    Prefer,
    /// Refuse the target otherwise.
    Require,
}

impl DigestPolicy {
    fn offer(self) -> &'static str {
        match self {
            DigestPolicy::None => "None",
            DigestPolicy::Prefer => "CRC32C,None",
            DigestPolicy::Require => "CRC32C",
        }
    }
}

/// How to prove who we are, and to be shown who the target is.
#[derive(Clone, Debug, Default)]
pub struct Auth {
    /// Our name and secret, if the target asks for them.
    pub initiator: Option<Credentials>,
    /// The target's name and secret: it must prove that it knows it.
    pub target: Option<Credentials>,
    /// Algorithms to offer, best first; empty for all.
    pub algorithms: Vec<ChapAlgorithm>,
}

/// The parameters of a login.
#[derive(Clone, Debug)]
pub(crate) struct LoginConfig {
    pub(crate) initiator_iqn: String,
    /// `None` for a discovery session.
    pub(crate) target_iqn: Option<String>,
    pub(crate) isid: Isid,
    pub(crate) auth: Auth,
    pub(crate) header_digest: DigestPolicy,
    pub(crate) data_digest: DigestPolicy,
    /// Random bytes for our own CHAP challenge.
    pub(crate) challenge: [u8; 33],
    /// Longest data segment of a request; 8192 until the target declares more (13.12).
    pub(crate) segment_limit: usize,
}

/// The keys that the initiator declares and offers (section 13).
pub(crate) mod ours {
    /// MaxRecvDataSegmentLength.
    pub(crate) const RECV_SEGMENT: u32 = 262_144;
    /// MaxBurstLength.
    pub(crate) const MAX_BURST: u32 = 1 << 20;
    /// FirstBurstLength.
    pub(crate) const FIRST_BURST: u32 = 262_144;
    /// MaxOutstandingR2T.
    pub(crate) const MAX_R2T: u32 = 8;
}

/// The outcome of the negotiation. Starts with the defaults of section 13, for targets that do not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Operational {
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
    pub(crate) initial_r2t: bool,
    pub(crate) immediate_data: bool,
    pub(crate) first_burst: u32,
    pub(crate) max_burst: u32,
    pub(crate) max_r2t: u32,
    /// The target's MaxRecvDataSegmentLength: the most we put into a PDU.
    pub(crate) send_segment: u32,
    /// TargetPortalGroupTag: with ISID and names, who the session is (4.4.1).
    pub(crate) portal_group: Option<u32>,
    pub(crate) tsih: u16,
    pub(crate) time_to_wait_seconds: u32,
}

impl Default for Operational {
    fn default() -> Operational {
        Operational {
            header_digest: false,
            data_digest: false,
            initial_r2t: true,
            immediate_data: true,
            first_burst: 65_536,
            max_burst: 262_144,
            max_r2t: 1,
            send_segment: 8192,
            portal_group: None,
            tsih: 0,
            time_to_wait_seconds: 2,
        }
    }
}

/// The step that follows a login response.
#[derive(Debug)]
pub(crate) enum Step {
    /// Send this request; its numbers are the connection's to fill in.
    Send(Bhs, Vec<u8>),
    /// Log in at `address` instead (11.13.5, class 1).
    Redirect { address: String, permanent: bool },
    /// The full-feature phase begins.
    Done(Operational),
}

/// Why a login failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// The target said no.
    #[error("the target refused the login: {} (status {class:02x}{detail:02x})", reason(*class, *detail))]
    Refused {
        /// Status-Class (RFC 7143 11.13.5).
        class: u8,
        /// Status-Detail.
        detail: u8,
    },
    /// The target did not choose one of our CHAP algorithms.
    #[error("the target takes none of the CHAP algorithms: {} (status {class:02x}{detail:02x})", reason(*class, *detail))]
    AlgorithmsRefused {
        /// Status-Class.
        class: u8,
        /// Status-Detail.
        detail: u8,
    },
    /// The target broke the protocol.
    #[error("login: {0}")]
    Protocol(&'static str),
    /// A value that cannot be accepted.
    #[error("login: the target answered {key}={got}, expected {expected}")]
    Value {
        /// The key.
        key: String,
        /// The target's value.
        got: String,
        /// The accepted values.
        expected: &'static str,
    },
    /// The two sides cannot agree who they are.
    #[error("authentication: {0}")]
    Authentication(&'static str),
    /// Text that cannot be read.
    #[error("login: {0}")]
    Text(#[from] TextError),
}

/// The target's reason in words (RFC 7143 11.13.5).
fn reason(class: u8, detail: u8) -> &'static str {
    match (class, detail) {
        (2, 0x00) => "initiator error",
        (2, 0x01) => "authentication failed: check the CHAP name and secret",
        (2, 0x02) => "this initiator name may not use the target: check its access list",
        (2, 0x03) => "no such target: check the target's IQN",
        (2, 0x04) => "the target was removed",
        (2, 0x05) => "unsupported version",
        (2, 0x06) => "too many connections",
        (2, 0x07) => "missing parameter",
        (2, 0x08) => "this connection cannot be part of the session",
        (2, 0x09) => "session type not supported",
        (2, 0x0a) => "the session does not exist",
        (2, 0x0b) => "invalid request during login",
        (3, 0x00) => "target error",
        (3, 0x01) => "service unavailable at this time",
        (3, 0x02) => "out of resources",
        _ => "unknown reason",
    }
}

/// Most exchanges of one login: more is a target going in circles.
const MAX_ROUNDS: usize = 64;

/// Where the security stage stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Security {
    /// AuthMethod is offered.
    Offered,
    /// CHAP_A is offered.
    Algorithms,
    /// CHAP_R is sent, with our own challenge if the target has to prove itself.
    Responded(ChapAlgorithm),
    /// No more to say.
    Proven,
}

/// One login, from the first request to the full-feature phase.
#[derive(Debug)]
pub(crate) struct LoginMachine {
    config: LoginConfig,
    stage: Stage,
    security: Security,
    operational: Operational,
    /// Text of the response under way, while its C bit goes on.
    incoming: Vec<u8>,
    /// Text that did not fit into the request just sent.
    outgoing: Vec<u8>,
    /// The request just begun wants to leave its stage, once its text is out.
    transit: bool,
    rounds: usize,
}

impl LoginMachine {
    pub(crate) fn new(config: LoginConfig) -> LoginMachine {
        LoginMachine {
            config,
            stage: Stage::Security,
            security: Security::Offered,
            operational: Operational::default(),
            incoming: Vec::new(),
            outgoing: Vec::new(),
            transit: true,
            rounds: 0,
        }
    }

    /// The first request: who we are and how we can prove it.
    pub(crate) fn start(&mut self) -> Step {
        let mut pairs = Pairs::default();
        pairs.push("InitiatorName", &self.config.initiator_iqn);
        match &self.config.target_iqn {
            Some(target) => {
                pairs.push("SessionType", "Normal");
                pairs.push("TargetName", target);
            }
            None => pairs.push("SessionType", "Discovery"),
        }
        let chap = self.config.auth.initiator.is_some();
        let must_prove = self.config.auth.target.is_some();
        pairs.push(
            "AuthMethod",
            if must_prove {
                "CHAP"
            } else if chap {
                "CHAP,None"
            } else {
                "None"
            },
        );
        self.send(pairs, !chap)
    }

    /// Takes a response, its data segment without padding.
    pub(crate) fn on_response(&mut self, bhs: &Bhs, segment: &[u8]) -> Result<Step, LoginError> {
        let response = Login::decode(bhs).ok_or(LoginError::Protocol("a reserved stage"))?;
        self.rounds += 1;
        if self.rounds > MAX_ROUNDS {
            return Err(LoginError::Protocol("the target goes in circles"));
        }
        let [class, detail] = response.status.to_be_bytes();
        if class > 1 {
            return Err(match self.security {
                Security::Algorithms | Security::Responded(_) if detail == 0 => {
                    LoginError::AlgorithmsRefused { class, detail }
                }
                _ => LoginError::Refused { class, detail },
            });
        }
        text::append(&mut self.incoming, segment)?;
        if response.goes_on {
            if response.transit {
                return Err(LoginError::Protocol("C and T together"));
            }
            return Ok(self.request(Vec::new(), false));
        }
        let incoming = std::mem::take(&mut self.incoming);
        if class == 1 {
            return redirect(&incoming, detail == 2);
        }
        if response.current != self.stage {
            return Err(LoginError::Protocol("a response of another stage"));
        }
        if !self.outgoing.is_empty() {
            return Ok(self.next_piece());
        }
        if response.transit && !self.transit {
            return Err(LoginError::Protocol("the target left the stage by itself"));
        }
        match self.stage {
            Stage::Security => self.on_security(&incoming, &response),
            _ => self.on_operational(&incoming, &response),
        }
    }

    fn on_security(&mut self, incoming: &[u8], response: &Login) -> Result<Step, LoginError> {
        let mut answer = Pairs::default();
        let mut keys = SecurityKeys::default();
        for pair in text::parse(incoming) {
            keys.take(pair?, &mut self.operational);
        }
        match self.security {
            Security::Offered => match keys.method {
                Some("CHAP") if self.config.auth.initiator.is_some() => {
                    if response.transit {
                        return Err(LoginError::Authentication("the target skipped CHAP after choosing it"));
                    }
                    self.security = Security::Algorithms;
                    answer.push("CHAP_A", chap::offer(self.algorithms()));
                    return Ok(self.send(answer, false));
                }
                // A target that is asked nothing but "None" may leave the answer out.
                Some("None") | None if self.config.auth.target.is_none() => self.security = Security::Proven,
                _ => return Err(LoginError::Authentication("the target accepts none of the offered methods")),
            },
            Security::Algorithms => return self.answer_challenge(&keys, answer),
            Security::Responded(algorithm) => {
                self.check_target(algorithm, &keys)?;
                self.security = Security::Proven;
            }
            Security::Proven => {}
        }
        if !response.transit {
            return Ok(self.send(answer, true));
        }
        match response.next {
            Stage::Operational => Ok(self.offer_operational()),
            Stage::FullFeature => Ok(Step::Done(self.finish(response)?)),
            Stage::Security => Err(LoginError::Protocol("a transit to the stage it leaves")),
        }
    }

    fn algorithms(&self) -> &[ChapAlgorithm] {
        let chosen = &self.config.auth.algorithms;
        if chosen.is_empty() { &ChapAlgorithm::ALL } else { chosen }
    }

    /// Responds to the target's challenge, and challenges it where it has to prove itself.
    fn answer_challenge(&mut self, keys: &SecurityKeys, mut answer: Pairs) -> Result<Step, LoginError> {
        let algorithm = keys
            .algorithm
            .and_then(ChapAlgorithm::from_number)
            .filter(|a| self.algorithms().contains(a))
            .ok_or(LoginError::Authentication("the target chose a CHAP algorithm that was not offered"))?;
        let identifier = keys.identifier.ok_or(LoginError::Authentication("no valid CHAP_I"))?;
        let challenge = keys.challenge.as_deref().ok_or(LoginError::Authentication("no valid CHAP_C"))?;
        let own_challenge = &self.config.challenge[..algorithm.len()];
        if challenge == own_challenge {
            return Err(LoginError::Authentication("the target reflected our challenge"));
        }
        let Some(own) = &self.config.auth.initiator else {
            return Err(LoginError::Authentication("CHAP without a name and secret"));
        };
        answer.push("CHAP_N", &own.name);
        answer.push("CHAP_R", text::to_hex(&algorithm.respond(identifier, &own.secret, challenge)));
        if self.config.auth.target.is_some() {
            answer.push("CHAP_I", self.own_identifier());
            answer.push("CHAP_C", text::to_hex(own_challenge));
        }
        self.security = Security::Responded(algorithm);
        Ok(self.send(answer, true))
    }

    fn own_identifier(&self) -> u8 {
        self.config.challenge[32]
    }

    /// "If the CHAP response received by one end of a connection is the same as the CHAP response that the receiving endpoint
    /// would have generated for the same CHAP challenge, the response MUST be treated as an authentication failure" (12.1.3).
    fn check_target(&self, algorithm: ChapAlgorithm, keys: &SecurityKeys) -> Result<(), LoginError> {
        let (Some(target), Some(own)) = (&self.config.auth.target, &self.config.auth.initiator) else { return Ok(()) };
        let response =
            keys.response.as_deref().ok_or(LoginError::Authentication("the target did not prove who it is"))?;
        let challenge = &self.config.challenge[..algorithm.len()];
        if chap::same(response, &algorithm.respond(self.own_identifier(), &own.secret, challenge)) {
            return Err(LoginError::Authentication("the target reflected our own secret"));
        }
        if keys.name != Some(target.name.as_str()) {
            return Err(LoginError::Authentication("the target has another CHAP name than expected"));
        }
        if !chap::same(response, &algorithm.respond(self.own_identifier(), &target.secret, challenge)) {
            return Err(LoginError::Authentication("the target does not know its secret"));
        }
        Ok(())
    }

    /// Every operational key, at once.
    fn offer_operational(&mut self) -> Step {
        self.stage = Stage::Operational;
        let mut pairs = Pairs::default();
        pairs.push("HeaderDigest", self.config.header_digest.offer());
        pairs.push("DataDigest", self.config.data_digest.offer());
        pairs.push("MaxRecvDataSegmentLength", ours::RECV_SEGMENT);
        pairs.push("DefaultTime2Wait", 2);
        pairs.push("DefaultTime2Retain", 0);
        pairs.push("ErrorRecoveryLevel", 0);
        if self.config.target_iqn.is_some() {
            pairs.push("InitialR2T", "No");
            pairs.push("ImmediateData", "Yes");
            pairs.push("MaxBurstLength", ours::MAX_BURST);
            pairs.push("FirstBurstLength", ours::FIRST_BURST);
            pairs.push("MaxOutstandingR2T", ours::MAX_R2T);
            pairs.push("MaxConnections", 1);
            pairs.push("DataPDUInOrder", "Yes");
            pairs.push("DataSequenceInOrder", "Yes");
        }
        self.send(pairs, true)
    }

    fn on_operational(&mut self, incoming: &[u8], response: &Login) -> Result<Step, LoginError> {
        let mut answer = Pairs::default();
        for pair in text::parse(incoming) {
            let (key, value) = pair?;
            if !self.settle(key, value)? {
                answer.push(key, "NotUnderstood");
            }
        }
        if !response.transit {
            return Ok(self.send(answer, true));
        }
        match response.next {
            Stage::FullFeature => Ok(Step::Done(self.finish(response)?)),
            _ => Err(LoginError::Protocol("a transit to a stage that is past")),
        }
    }

    /// Takes the target's value of one key. Returns whether the key is known.
    fn settle(&mut self, key: &str, value: &str) -> Result<bool, LoginError> {
        if matches!(value, "NotUnderstood" | "Irrelevant" | "Reject" | "None") && !key.ends_with("Digest") {
            return Ok(true);
        }
        let bad = |expected| LoginError::Value { key: key.into(), got: value.chars().take(80).collect(), expected };
        let range = |low: u32, high: u32, expected| {
            text::number(value).filter(|n| (low..=high).contains(n)).ok_or_else(|| bad(expected))
        };
        let boolean = || match value {
            "Yes" => Ok(true),
            "No" => Ok(false),
            _ => Err(bad("Yes or No")),
        };
        let burst = || range(512, 0xff_ffff, "512 to 16777215");
        let o = &mut self.operational;
        match key {
            "HeaderDigest" => o.header_digest = digest(self.config.header_digest, value).map_err(bad)?,
            "DataDigest" => o.data_digest = digest(self.config.data_digest, value).map_err(bad)?,
            "MaxRecvDataSegmentLength" => o.send_segment = burst()?,
            // The result functions of 13: InitialR2T is OR, ImmediateData AND, the rest the minimum. We offered No and Yes.
            "InitialR2T" => o.initial_r2t = boolean()?,
            "ImmediateData" => o.immediate_data = boolean()?,
            "MaxBurstLength" => o.max_burst = burst()?.min(ours::MAX_BURST),
            "FirstBurstLength" => o.first_burst = burst()?.min(ours::FIRST_BURST),
            "MaxOutstandingR2T" => o.max_r2t = range(1, 65_535, "1 to 65535")?.min(ours::MAX_R2T),
            "DefaultTime2Wait" => o.time_to_wait_seconds = range(0, 3600, "0 to 3600")?,
            "ErrorRecoveryLevel" => drop(range(0, 0, "0")?),
            "DataPDUInOrder" | "DataSequenceInOrder" if !boolean()? => return Err(bad("Yes")),
            "TargetPortalGroupTag" => o.portal_group = Some(range(0, 65_535, "0 to 65535")?),
            "DataPDUInOrder" | "DataSequenceInOrder" | "MaxConnections" | "DefaultTime2Retain" => {}
            "TargetAlias" | "TargetAddress" | "TaskReporting" | "iSCSIProtocolLevel" => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn finish(&mut self, response: &Login) -> Result<Operational, LoginError> {
        // A key the target left out counts as "None" for digests; where they are required that is not enough.
        for (policy, on, key) in [
            (self.config.header_digest, self.operational.header_digest, "HeaderDigest"),
            (self.config.data_digest, self.operational.data_digest, "DataDigest"),
        ] {
            if policy == DigestPolicy::Require && !on {
                return Err(LoginError::Value { key: key.into(), got: "None".into(), expected: "CRC32C" });
            }
        }
        if response.tsih == 0 && self.config.target_iqn.is_some() {
            return Err(LoginError::Protocol("a session without a TSIH"));
        }
        let mut operational = std::mem::take(&mut self.operational);
        operational.tsih = response.tsih;
        operational.first_burst = operational.first_burst.min(operational.max_burst);
        Ok(operational)
    }

    /// Begins a request with `pairs`, in as many PDUs as they need.
    fn send(&mut self, pairs: Pairs, transit: bool) -> Step {
        self.outgoing = pairs.into_bytes();
        self.transit = transit;
        self.next_piece()
    }

    fn next_piece(&mut self) -> Step {
        let rest = self.outgoing.split_off(self.outgoing.len().min(self.config.segment_limit));
        let piece = std::mem::replace(&mut self.outgoing, rest);
        self.request(piece, self.transit)
    }

    fn request(&self, segment: Vec<u8>, transit: bool) -> Step {
        let goes_on = !self.outgoing.is_empty();
        let next = if self.stage == Stage::Security { Stage::Operational } else { Stage::FullFeature };
        let login = Login {
            transit: transit && !goes_on,
            goes_on,
            current: self.stage,
            next,
            isid: self.config.isid,
            tsih: 0,
            itt: 0,
            status: 0,
        };
        let mut bhs = login.encode_request();
        bhs.set_data_len(segment.len());
        Step::Send(bhs, segment)
    }
}

/// Keys of the security stage, as a response carried them.
#[derive(Default)]
struct SecurityKeys<'a> {
    method: Option<&'a str>,
    algorithm: Option<u32>,
    identifier: Option<u8>,
    challenge: Option<Vec<u8>>,
    name: Option<&'a str>,
    response: Option<Vec<u8>>,
}

impl<'a> SecurityKeys<'a> {
    fn take(&mut self, (key, value): (&'a str, &'a str), operational: &mut Operational) {
        match key {
            "AuthMethod" => self.method = Some(value),
            "CHAP_A" => self.algorithm = text::number(value),
            "CHAP_I" => self.identifier = text::number(value).and_then(|n| n.try_into().ok()),
            "CHAP_C" => {
                self.challenge = text::binary(value).filter(|c| (1..=chap::MAX_CHALLENGE).contains(&c.len()));
            }
            "CHAP_N" => self.name = Some(value),
            "CHAP_R" => self.response = text::binary(value),
            "TargetPortalGroupTag" => operational.portal_group = text::number(value),
            _ => {}
        }
    }
}

fn digest(policy: DigestPolicy, value: &str) -> Result<bool, &'static str> {
    match (policy, value) {
        (DigestPolicy::Prefer | DigestPolicy::Require, "CRC32C") => Ok(true),
        (DigestPolicy::None | DigestPolicy::Prefer, "None" | "Irrelevant" | "NotUnderstood" | "Reject") => Ok(false),
        (DigestPolicy::None, _) => Err("None"),
        (DigestPolicy::Prefer, _) => Err("CRC32C or None"),
        (DigestPolicy::Require, _) => Err("CRC32C"),
    }
}

fn redirect(text: &[u8], permanent: bool) -> Result<Step, LoginError> {
    for pair in text::parse(text) {
        if let ("TargetAddress", value) = pair? {
            let address = value.split_once(',').map_or(value, |(address, _)| address);
            return Ok(Step::Redirect { address: address.into(), permanent });
        }
    }
    Err(LoginError::Protocol("a redirect without a TargetAddress"))
}
