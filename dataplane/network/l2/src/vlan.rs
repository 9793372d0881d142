//! How a port takes part in VLANs (IEEE 802.1Q).

use flow::key::VLAN_PRESENT;

/// The VLANs of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VlanMode {
    /// All packets are of one VLAN; they have no tag on the wire.
    Access {
        /// The VLAN.
        vlan: u16,
    },
    /// Packets of several VLANs, with their tags.
    Trunk {
        /// The VLANs; none is all of them. VLAN 0 is that of packets without a tag, where no native VLAN is named.
        vlans: Vec<u16>,
        /// The VLAN of packets without a tag.
        native: Option<u16>,
    },
}

impl Default for VlanMode {
    /// A port of a bridge that was told nothing of VLANs: all of them.
    fn default() -> VlanMode {
        VlanMode::Trunk { vlans: Vec::new(), native: None }
    }
}

/// The largest VLAN identifier; 4095 is reserved.
pub const MAX_VLAN: u16 = 4094;

impl VlanMode {
    /// The VLAN of a packet that came in with this TCI, 0 without a tag; `None` where the port does not take it.
    pub(crate) fn ingress(&self, tci: u64) -> Option<u16> {
        let vid = (tci & 0xfff) as u16;
        match self {
            // A tag of VLAN 0 carries a priority only.
            VlanMode::Access { vlan } => (vid == 0).then_some(*vlan),
            VlanMode::Trunk { native, .. } => {
                let vlan = if vid == 0 { native.unwrap_or(0) } else { vid };
                (vid <= MAX_VLAN && self.carries(vlan)).then_some(vlan)
            }
        }
    }

    /// Whether packets of `vlan` may leave, and, if so, whether with a tag.
    pub(crate) fn egress(&self, vlan: u16) -> Option<Tag> {
        let tagged = match self {
            VlanMode::Access { .. } => false,
            VlanMode::Trunk { native, .. } => vlan != native.unwrap_or(0),
        };
        self.carries(vlan).then_some(if tagged { Tag::Of(vlan) } else { Tag::None })
    }

    fn carries(&self, vlan: u16) -> bool {
        match self {
            VlanMode::Access { vlan: own } => vlan == *own,
            // Without a tag a trunk with a native VLAN carries that; VLAN 0 would look the same.
            VlanMode::Trunk { native: Some(_), .. } if vlan == 0 => false,
            VlanMode::Trunk { vlans, native } => vlans.is_empty() || vlans.contains(&vlan) || *native == Some(vlan),
        }
    }
}

/// The tag that a packet has, or shall have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tag {
    None,
    /// 0 for a tag with a priority only.
    Of(u16),
}

impl Tag {
    pub(crate) fn from_tci(tci: u64) -> Tag {
        if tci & VLAN_PRESENT == 0 { Tag::None } else { Tag::Of((tci & 0xfff) as u16) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tagged(vid: u16) -> u64 {
        VLAN_PRESENT | u64::from(vid)
    }

    #[test]
    fn an_access_port_has_one_vlan_and_no_tags() {
        let port = VlanMode::Access { vlan: 7 };
        assert_eq!((port.ingress(0), port.ingress(tagged(0)), port.ingress(tagged(7))), (Some(7), Some(7), None));
        assert_eq!((port.egress(7), port.egress(8), port.egress(0)), (Some(Tag::None), None, None));
    }

    #[test]
    fn a_trunk_carries_its_vlans() {
        let all = VlanMode::default();
        assert_eq!((all.ingress(0), all.ingress(tagged(9)), all.ingress(tagged(4095))), (Some(0), Some(9), None));
        assert_eq!((all.egress(0), all.egress(9)), (Some(Tag::None), Some(Tag::Of(9))));
        let some = VlanMode::Trunk { vlans: vec![5], native: None };
        assert_eq!((some.ingress(0), some.ingress(tagged(5)), some.ingress(tagged(6))), (None, Some(5), None));
        let native = VlanMode::Trunk { vlans: vec![5], native: Some(9) };
        assert_eq!(
            (native.ingress(0), native.ingress(tagged(9)), native.ingress(tagged(5))),
            (Some(9), Some(9), Some(5))
        );
        assert_eq!((native.egress(9), native.egress(5), native.egress(0)), (Some(Tag::None), Some(Tag::Of(5)), None));
    }
}
