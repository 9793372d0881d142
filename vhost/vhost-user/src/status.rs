//! What a session tells about itself.

/// A device's session, as control and metrics see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionStatus {
    /// Whether a front-end is connected.
    pub connected: bool,
    /// Connections since the start.
    pub connections: u64,
    /// Who is, or was last, on the other side.
    pub peer: Option<Peer>,
    /// Negotiated virtio features, those of vhost-user included.
    pub features: Option<u64>,
    /// Negotiated protocol features.
    pub protocol_features: u64,
    /// Regions of the memory table.
    pub memory_regions: usize,
    /// The started rings.
    pub rings: Vec<RingStatus>,
    /// Messages refused in this session that did not end it.
    pub refused: u64,
    /// The last refusal, or why the last session ended. Kept until the next one.
    pub last_error: Option<String>,
}

/// A started ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingStatus {
    /// Queue.
    pub index: u16,
    /// Entries.
    pub size: u16,
    /// SET_VRING_ENABLE.
    pub enabled: bool,
}

/// Credentials of the process that opened the connection (SO_PEERCRED).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Process.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}
