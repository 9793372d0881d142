//! Feature bits, as masks (virtio 1.3, 2.2 and 6; vhost-user, "Protocol features").

/// The driver can use descriptors that are not preceded by `F_ANY_LAYOUT`'s forerunner; legacy name of any descriptor layout.
pub const ANY_LAYOUT: u64 = 1 << 27;
/// Indirect descriptors (2.7.5.3, 2.8.7).
pub const RING_INDIRECT_DESC: u64 = 1 << 28;
/// Used and available events by index (2.7.7, 2.7.10, 2.8.10).
pub const RING_EVENT_IDX: u64 = 1 << 29;
/// vhost-user: protocol features can be negotiated.
pub const VHOST_USER_PROTOCOL_FEATURES: u64 = 1 << 30;
/// Virtio 1.x, not legacy (6.1).
pub const VERSION_1: u64 = 1 << 32;
/// Device accesses memory through an IOMMU (6.1).
pub const ACCESS_PLATFORM: u64 = 1 << 33;
/// Packed virtqueue layout (2.8).
pub const RING_PACKED: u64 = 1 << 34;
/// Buffers are used in the order they were made available (2.7.9, 2.8.9).
pub const IN_ORDER: u64 = 1 << 35;
/// vhost: log all writes to guest memory.
pub const VHOST_LOG_ALL: u64 = 1 << 26;
