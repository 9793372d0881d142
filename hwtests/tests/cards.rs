//! What a card with rte_flow has to do for the daemon. Runs on the model of an FPGA, or on a real card that the environment names
//! ([`card`]); what only the model can be told to do is left out there.

mod card;

use anyhow::{Result, ensure};
use card::{Card, eventually};
use serde_json::json;

#[test]
#[ignore = "needs root"]
fn flows_between_ports_of_a_card_are_offloaded() -> Result<()> {
    let card = Card::new()?;
    card.ping_until("both directions in the card", Card::is_offloaded)?;
    let received = |card: &Card| Ok::<u64, anyhow::Error>(card.received("wire")? + card.received("function")?);
    let before = received(&card)?;
    card.ping(500)?;
    let after = received(&card)?;
    // What the kernels say by themselves may still come here.
    ensure!(after - before < 100, "the workers saw {} packets of 1000", after - before);
    eventually("the card's counters", || Ok(card.offloaded("packets")? >= 1000))?;
    let flows = card.flows()?;
    ensure!(flows.iter().filter(|flow| flow.contains("offloaded:yes, dp:dpdk")).count() >= 2, "{flows:#?}");
    let metrics = card.daemon.rpc("metrics_get", json!({}))?;
    ensure!(metrics.as_str().is_some_and(|text| text.contains("sluice_offload_insertions_total ")), "{metrics}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn header_rewrites_arrive_whether_card_or_worker_applies_them() -> Result<()> {
    let card = Card::new()?;
    let key = "in_port(2),eth(),eth_type(0x0800),ipv4(proto=1,frag=no)";
    card.daemon.rpc("flow_add", json!({"flow": key, "actions": "set(ipv4(ttl=9)),1"}))?;
    card.ping_until("the flow in the card, or refused", |card| {
        let is_refused = card.refused()?.iter().any(|(flow, _)| flow.starts_with("in_port(2)"));
        Ok(is_refused || card.flows()?.iter().any(|flow| flow.contains("ttl=9") && flow.contains("offloaded:yes")))
    })?;
    ensure!(card.ping_once()? == Some(9));
    println!("refused: {:?}", card.refused()?);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_modified_flow_is_modified_in_the_card() -> Result<()> {
    let card = Card::new()?;
    card.ping_until("both directions in the card", Card::is_offloaded)?;
    let key = "in_port(1),eth(),eth_type(0x0800),ipv4(proto=1,frag=no)";
    card.daemon.rpc("flow_add", json!({"flow": key, "actions": "2"}))?;
    card.ping_until("the operator's flow in the card", |card| {
        Ok(card
            .flows()?
            .iter()
            .any(|flow| flow.contains("offloaded:yes") && flow.ends_with("actions:2") && flow.contains("proto=1")))
    })?;
    card.daemon.rpc("flow_add", json!({"flow": key, "actions": "drop"}))?;
    // The card is told when the call is answered, and does it in its own time.
    eventually("an echo that is dropped", || Ok(card.ping_once()?.is_none()))?;
    card.daemon.rpc("flow_delete", json!({"flow": key}))?;
    ensure!(card.ping_once()?.is_some(), "an echo was dropped after the flow had gone");
    card.ping_until("both directions in the card again", Card::is_offloaded)
}

#[test]
#[ignore = "needs root"]
fn a_flow_without_an_rte_flow_equivalent_is_reported_and_stays_in_software() -> Result<()> {
    let card = Card::new()?;
    let key = "in_port(1),eth(),eth_type(0x0800),ipv4(proto=1,frag=no)";
    card.daemon.rpc("flow_add", json!({"flow": key, "actions": "2,1"}))?;
    card.ping_until("a refusal with its flow and clause", |card| {
        let told = ("in_port(1)", "action 2: a rule of rte_flow has one output");
        Ok(card.refused()?.iter().any(|(flow, reason)| flow.starts_with(told.0) && reason.starts_with(told.1)))
    })?;
    card.daemon.rpc("flow_delete", json!({"flow": key}))?;
    card.ping_until("both directions in the card", Card::is_offloaded)
}

#[test]
#[ignore = "needs root"]
fn flows_are_offloaded_again_when_a_card_port_comes_back() -> Result<()> {
    let card = Card::new()?;
    for _ in 0..3 {
        card.ping_until("both directions in the card", Card::is_offloaded)?;
        card.daemon.rpc("port_delete", json!({"name": "function"}))?;
        eventually("no flow in the card", || Ok(card.offloaded("flows")? == 0))?;
        card.plug_function()?;
    }
    card.ping_until("both directions in the card again", Card::is_offloaded)
}

#[test]
#[ignore = "needs root"]
fn a_full_card_leaves_flows_in_software() -> Result<()> {
    let Some(card) = Card::with_faults(",exact=0,masked=1")? else { return Ok(()) };
    card.ping_until("a flow without room", |card| Ok(card.offloaded("full")? > 0))?;
    ensure!(card.offloaded("flows")? <= 1);
    card.ping(200)
}

#[test]
#[ignore = "needs root"]
fn the_rule_limit_of_a_port_is_enforced() -> Result<()> {
    let card = Card::with_options(&["--offload-rules-per-port=0"])?;
    card.ping_until("a flow without a credit", |card| Ok(card.offloaded("full")? > 0))?;
    ensure!(card.offloaded("flows")? == 0, "{:#}", card.offload()?);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_rule_refused_at_insertion_is_reported_with_its_flow() -> Result<()> {
    // Validate says that it is fine.
    let Some(card) = Card::with_faults(",refuse-create=represented_port")? else { return Ok(()) };
    card.ping_until("a refusal with its flow and clause", |card| {
        let is_told =
            |(flow, reason): &(String, String)| flow.contains("in_port(1)") && reason.contains("refused on demand");
        Ok(card.refused()?.iter().any(is_told))
    })?;
    ensure!(card.offloaded("flows")? == 0);
    println!("{:?}", card.refused()?);
    card.ping(200)
}

#[test]
#[ignore = "needs root"]
fn an_unanswered_rule_insertion_is_reported_with_its_flow() -> Result<()> {
    let Some(card) = Card::with_faults(",lose-completion=1")? else { return Ok(()) };
    card.ping_until("a flow whose rule is unanswered", |card| {
        let is_told = |(flow, reason): &(String, String)| {
            flow.contains("in_port(1)") && reason.starts_with("no completion from the device")
        };
        Ok(card.refused()?.iter().any(is_told))
    })?;
    ensure!(card.offloaded("lost_completions")? > 0);
    card.ping(200)
}

#[test]
#[ignore = "needs root"]
fn a_reset_card_gets_its_rules_again() -> Result<()> {
    let Some(card) = Card::with_faults(",reset-after=1500")? else { return Ok(()) };
    card.ping_until("a loss", |card| Ok(card.offloaded("lost")? > 0))?;
    card.ping_until("both directions in the card again", Card::is_offloaded)
}

#[test]
#[ignore = "needs root"]
fn flows_to_ports_without_rte_flow_stay_in_software_and_are_reported() -> Result<()> {
    let card = Card::new()?;
    let third = hwtests::Namespace::new("t", "10.98.0.3/24")?;
    card.plug("third", &format!("net_af_packet7,iface={}", third.cable()))?;
    let told = |card: &Card| {
        let is_told = |(flow, reason): &(String, String)| {
            flow.contains("in_port(1)") && reason.starts_with("port 3 is not in this device's switch domain")
        };
        Ok(card.refused()?.iter().any(is_told))
    };
    eventually("a refusal with its flow and port", || {
        third.ping("10.98.0.1", 100)?;
        told(&card)
    })?;
    let from_third = |flow: &&String| flow.contains("in_port(3)");
    let flows = card.flows()?;
    ensure!(flows.iter().filter(from_third).all(|flow| !flow.contains("offloaded:yes")), "{flows:#?}");
    // The other way the card marks the packets, and the worker does not look them up.
    eventually("a flow that is partly in the card", || {
        third.ping("10.98.0.1", 100)?;
        let to_third = |flow: &String| flow.contains("in_port(1)") && flow.contains("offloaded:partial, dp:ovs");
        Ok(card.flows()?.iter().any(to_third) && card.offloaded("partial")? > 0)
    })?;
    // And what is between ports of the card goes into it all the same.
    card.ping_until("both directions in the card", Card::is_offloaded)
}
