//! Rules into the model of a card: how many a second, what each takes of memory, and what a look at them costs.
//!
//! Each measurement has a process of its own, since DPDK is once in a process and memory is compared.

use crate::measure::{Measurement, Pinned, Plan, cpu_time};
use crate::report::{Report, Table};
use crate::switch::write_stations;
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use clock::Cycles;
use datapath::{Offer, Offload, OffloadHandle};
use dpdk::flow::{FlowPort, FlowQueue};
use dpdk::{Eal, EalConfig, EalMemory, Mempool};
use engine::{Engine, IdlePolicy, Source};
use flow::key::field;
use flow::text::{FlowMatch, parse_actions};
use flow::{Megaflow, PortNo};
use offload::{Config, Offloader, Rule, Totals};
use packet::Burst;
use port::{EthdevParams, EthdevPort, Port, PortShard};
use rte_net_fpgasim as _;
use rte_rule::FlowQueue as _;
use rte_rule::{FlowDevice, RuleId};
use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Flows of which each is looked at each time, as it moves.
const ACTIVE: usize = 10_000;
/// Flows whose memory is measured.
const MILLION: usize = 1_000_000;
/// Offers that are on their way to a card at a time, where memory is measured.
const AHEAD: u64 = 1024;
const RULES_TIMEOUT: Duration = Duration::from_secs(60);

/// What one process measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Step {
    /// Nanoseconds of each part of an insertion
    Rates,
    /// The whole way from offers to rules
    Offers,
    /// Memory of a million rules in a queue
    MemoryOfQueue,
    /// Memory of a million flows in the offload
    MemoryOfOffload,
    /// A look with no idle flows
    LookAtNone,
    /// A look with a hundred thousand of them
    LookAtMany,
    /// A look with a million of them
    LookAtMillion,
}

pub(crate) fn run(plan: &Plan, quick: bool, report: &mut Report) -> Result<()> {
    let rounds = plan.windows;
    let mut figures: HashMap<String, Vec<f64>> = HashMap::new();
    let mut peer = Vec::new();
    for _ in 0..rounds {
        for step in [Step::Rates, Step::Offers] {
            take(step, quick, &mut figures)?;
        }
        peer.push(flow_perf(plan, plan.items)?);
    }
    let of = |name: &str| -> Result<Measurement> {
        Ok(Measurement::new(figures.get(name).with_context(|| format!("no figure {name}"))?.iter().copied()))
    };
    report.section("Rules into a card, against one call a rule and dpdk-test-flow-perf");
    report.text(&format!(
        "{} flows of five fields (and Ethernet's), counted and sent to another port, into the model of a card without added latency, \
         on one core: CPU time of everything in the process, the model included. The queue takes what it holds, then completions are \
         pulled. dpdk-test-flow-perf puts rules of Ethernet, IPv4 and UDP into the same model by one call each, as it prints it. Median of \
         {rounds} runs (range).",
        plan.items,
    ));
    let mut table = Table::new(["", "ns a rule", "thousand rules a second", "ratio to one call a rule"]);
    let single = of("single")?;
    let whole = |name: &str| -> Result<Vec<String>> {
        let ns = of(name)?;
        let rate = Measurement::new([1e6 / ns.max(), 1e6 / ns.median(), 1e6 / ns.min()]);
        Ok(vec![ns.show(0), rate.show(0), format!("{:.2}", single.median() / ns.median())])
    };
    for (label, name) in [
        ("projection and queue", "queued"),
        ("projection and one call a rule", "single"),
        ("of which projection", "projection"),
        ("of which lowering", "lowering"),
        ("of which book-keeping, DPDK and model", "pmd"),
        ("from the switch's offer to a rule, all threads", "offers"),
    ] {
        table.push([vec![label.to_owned()], whole(name)?].concat());
    }
    let peer = Measurement::new(peer);
    let ns = Measurement::new([1e6 / peer.max(), 1e6 / peer.median(), 1e6 / peer.min()]);
    let ratio = format!("{:.2}", single.median() * peer.median() / 1e6);
    table.push(vec!["dpdk-test-flow-perf, no projection".to_owned(), ns.show(0), peer.show(0), ratio]);
    report.table(table);
    memory(quick, report)?;
    looks(quick, report)
}

fn memory(quick: bool, report: &mut Report) -> Result<()> {
    let mut figures = HashMap::new();
    take(Step::MemoryOfQueue, quick, &mut figures)?;
    take(Step::MemoryOfOffload, quick, &mut figures)?;
    let (queue, offload) = (figures["queue"][0], figures["offload"][0]);
    let slot = figures["slot"][0];
    report.text(&format!(
        "Memory of a million offloaded flows, resident: {offload:.0} bytes each with the model's, {queue:.0} bytes for the same rules in \
         a queue alone, of which {slot:.0} are the queue's. What the host keeps of a flow (place, name, handle, and its rule in the \
         queue): **{:.0} bytes**. The aim is below 200.",
        offload - queue + slot,
    ));
    Ok(())
}

fn looks(quick: bool, report: &mut Report) -> Result<()> {
    let mut table = Table::new(["idle flows in the card", "µs a look", "ns an active flow"]);
    for (idle, step) in [("0", Step::LookAtNone), ("100 000", Step::LookAtMany), ("1 000 000", Step::LookAtMillion)] {
        let mut figures = HashMap::new();
        take(step, quick, &mut figures)?;
        let us = figures["look"][0];
        table.push(vec![idle.to_owned(), format!("{us:.0}"), format!("{:.0}", us * 1e3 / ACTIVE as f64)]);
    }
    report.text(&format!(
        "What a look at the counters costs, twice a second, with {ACTIVE} flows that move and others that do not, in a card that does not age \
         rules:",
    ));
    report.table(table);
    Ok(())
}

/// Has a process of its own take a measurement. It prints names and figures.
fn take(step: Step, quick: bool, figures: &mut HashMap<String, Vec<f64>>) -> Result<()> {
    let name = step.to_possible_value().context("a name")?.get_name().to_owned();
    let quick = quick.then_some("--quick");
    let mut command = Command::new(std::env::current_exe()?);
    let output = command.args(["--offload-step", &name]).args(quick).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{name}: {said}{}", String::from_utf8_lossy(&output.stderr));
    for (name, figure) in said.lines().filter_map(|line| line.strip_prefix("figure ")?.split_once(' ')) {
        figures.entry(name.to_owned()).or_default().push(figure.parse()?);
    }
    Ok(())
}

/// What the peer says that it inserts, in thousands a second.
fn flow_perf(plan: &Plan, rules: usize) -> Result<f64> {
    let library = library()?;
    let directories = library.parent().context("a directory")?;
    let batch = rules.to_string();
    let output = Command::new("dpdk-test-flow-perf")
        .args(["--no-pci", "--no-huge", "--no-shconf", "--no-telemetry", "-m256"])
        .arg(format!("--lcores=0@{0},1@{0}", plan.backend_cpu))
        .arg("-d")
        .arg(&library)
        .args(["--vdev", &format!("net_fpgasim0,exact={},masked=1024", 2 * rules), "--", "--transfer", "--group=1"])
        .args(["--ether", "--ipv4", "--udp", "--count", "--drop"])
        .args([format!("--rules-count={batch}"), format!("--rules-batch={batch}")])
        .env("LD_LIBRARY_PATH", directories)
        .output()
        .context("dpdk-test-flow-perf: is Debian's package dpdk-dev installed?")?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let rates = said.lines().filter(|line| line.contains("insertion rate") || line.contains("Insertion rate"));
    let mut rates =
        rates.filter_map(|line| line.split_whitespace().filter_map(|word| word.parse::<f64>().ok()).next_back());
    rates.next_back().with_context(|| format!("no rate in what it said: {said}"))
}

/// The driver, as other programs load it.
fn library() -> Result<PathBuf> {
    let executable = std::env::current_exe()?;
    let directory = executable.parent().context("a directory")?;
    let names = ["librte_net_fpgasim.so", "deps/librte_net_fpgasim.so"];
    let found = names.iter().map(|name| directory.join(name)).find(|path| path.exists());
    found.with_context(|| format!("librte_net_fpgasim.so: not in {}", directory.display()))
}

/// A card with a wire and a function, of which this process has both ports.
struct Card {
    eal: Eal,
    pool: Mempool,
    ports: [Arc<EthdevPort>; 2],
}

impl Card {
    fn new(plan: &Plan, arguments: &str) -> Result<Card> {
        let memory = EalMemory::NoHuge { mib: 256 };
        let eal = Eal::init(&EalConfig { memory, control_cpus: vec![plan.client_cpu], ..EalConfig::default() })?;
        let pool = Mempool::new(&eal, "packets", 16_384, None)?;
        let open = |devargs: &str| EthdevPort::open(&eal, &EthdevParams::new(devargs, &pool, 1)).map(Arc::new);
        // A fragment's flags are matched by a part of their field: such rules are masked ones.
        let sizes = format!("exact=1024,masked={}", 2 * MILLION);
        let first = open(&format!("net_fpgasim0,{sizes},function=(net_null1,no-rx=1){arguments}"))?;
        let ports = [first, open("net_fpgasim0_representor_0")?];
        Ok(Card { eal, pool, ports })
    }

    fn flow_port(&self) -> Result<FlowPort> {
        self.ports[0].flow_port().context("a port with rules")
    }

    fn queue(&self) -> Result<FlowQueue> {
        self.flow_port()?.take_queue().context("the model has no templates")
    }

    fn offloader(&self, config: Config) -> Result<Offloader> {
        let offloader = Offloader::start_with(config)?;
        for (number, port) in (1..).zip(&self.ports) {
            ensure!(offloader.add_port(number, &**port), "no hardware behind port {number}");
        }
        Ok(offloader)
    }

    /// The rule of a flow.
    fn rule(&self, flow: &Megaflow) -> Result<Rule> {
        let number = |port: PortNo| Some(port as u16 - 1);
        Ok(Rule::of(&flow.key, &flow.mask, &flow.actions, number)?)
    }
}

/// Takes one measurement and prints it.
pub(crate) fn step(step: Step, plan: &Plan) -> Result<()> {
    let on_one_core = matches!(step, Step::Rates | Step::Offers);
    let _pinned = on_one_core.then(|| Pinned::to(plan.backend_cpu)).transpose()?;
    match step {
        Step::Rates => rates(plan),
        Step::Offers => offers(plan),
        Step::MemoryOfQueue => memory_of_queue(plan),
        Step::MemoryOfOffload => memory_of_offload(plan),
        Step::LookAtNone => look(plan, 0),
        Step::LookAtMany => look(plan, MILLION / 10),
        Step::LookAtMillion => look(plan, MILLION),
    }
}

fn figure(name: &str, figure: f64) {
    println!("figure {name} {figure}");
}

/// Different flows of five fields, as many as wanted.
fn flows(count: usize) -> Result<impl Iterator<Item = Megaflow>> {
    let text = "in_port(1),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x0800),\
                ipv4(src=10.0.0.0,dst=10.1.0.1,proto=17,frag=no),udp(src=0,dst=4789)";
    let FlowMatch { key, mask } = text.parse()?;
    let actions: Arc<[flow::Action]> = parse_actions("2")?.into();
    Ok((0..count as u64).map(move |n| {
        let mut key = key;
        key.set(field::IPV4_SRC, 0x0a00_0000 + (n >> 12));
        key.set(field::TP_SRC, 1 + (n & 0xfff));
        let ufid = u128::from((n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64
            | u128::from((n + 1).wrapping_mul(0xd134_2543_de82_ef95));
        Megaflow { ufid, ..Megaflow::new(key, mask, actions.clone()) }
    }))
}

/// Puts rules in as fast as the queue takes them, and waits for the last.
fn fill<'a>(
    queue: &mut FlowQueue,
    rules: impl Iterator<Item = Result<std::borrow::Cow<'a, Rule>>>,
) -> Result<Vec<RuleId>> {
    let (mut completions, mut placed) = (Vec::new(), Vec::new());
    let mut drain = |queue: &mut FlowQueue, until: u32| -> Result<()> {
        queue.push()?;
        while queue.pending() > until {
            queue.pull(&mut completions)?;
        }
        ensure!(completions.drain(..).all(|completion| completion.done), "the model did not take a rule");
        Ok(())
    };
    for rule in rules {
        let rule = rule?;
        if queue.room() == 0 {
            drain(queue, 0)?;
        }
        placed.push(queue.create(&rule.attr(0), &rule.pattern, &rule.actions)?);
    }
    drain(queue, 0)?;
    Ok(placed)
}

fn empty(queue: &mut FlowQueue, rules: Vec<RuleId>) -> Result<()> {
    let mut completions = Vec::new();
    for rule in rules {
        if queue.room() == 0 {
            queue.push()?;
            queue.pull(&mut completions)?;
            completions.clear();
        }
        queue.destroy(rule)?;
    }
    queue.push()?;
    while queue.pending() > 0 {
        queue.pull(&mut completions)?;
    }
    Ok(())
}

/// Nanoseconds for each of `count`, of this process's CPU time.
fn nanoseconds<T>(count: usize, work: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let before = cpu_time(std::process::id())?;
    let done = work()?;
    Ok(((cpu_time(std::process::id())? - before).as_nanos() as f64 / count as f64, done))
}

fn rates(plan: &Plan) -> Result<()> {
    use std::borrow::Cow;
    let (card, count) = (Card::new(plan, "")?, plan.items);
    let megaflows: Vec<Megaflow> = flows(count)?.collect();
    let mut queue = card.queue()?;
    // Once for the memory.
    let placed = fill(&mut queue, megaflows.iter().map(|flow| card.rule(flow).map(Cow::Owned)))?;
    empty(&mut queue, placed)?;
    let (projection, rules) = nanoseconds(count, || {
        let mut kept = 0;
        for flow in &megaflows {
            kept += std::hint::black_box(card.rule(flow)?).pattern.len();
        }
        Ok(kept)
    })?;
    ensure!(rules > count, "rules have items");
    let lowering = {
        let rule = card.rule(&megaflows[0])?;
        let began = Cycles::now();
        for _ in 0..count {
            queue.lower(std::hint::black_box(&rule.pattern), std::hint::black_box(&rule.actions));
        }
        Cycles::now().since(began).as_nanos() as f64 / count as f64
    };
    let (queued, placed) =
        nanoseconds(count, || fill(&mut queue, megaflows.iter().map(|flow| card.rule(flow).map(Cow::Owned))))?;
    empty(&mut queue, placed)?;
    let port = card.flow_port()?;
    let (single, placed) = nanoseconds(count, || {
        let place = |flow: &Megaflow| {
            let rule = card.rule(flow)?;
            Ok(port.create(&rule.attr(0), &rule.pattern, &rule.actions)?)
        };
        megaflows.iter().map(place).collect::<Result<Vec<_>>>()
    })?;
    drop(placed);
    figure("projection", projection);
    figure("lowering", lowering);
    figure("queued", queued);
    figure("pmd", queued - projection - lowering);
    figure("single", single);
    Ok(())
}

/// Offers as a switch makes them, until all are in the card. Returns the handles.
fn offer_all(
    offloader: &Offloader,
    flows: impl Iterator<Item = Megaflow>,
    handles: &[Arc<OffloadHandle>],
    ahead: u64,
) -> Result<Totals> {
    let inserted = |at_least: u64| -> Result<Totals> {
        let deadline = Instant::now() + RULES_TIMEOUT;
        loop {
            let totals = offloader.totals();
            ensure!(totals.refused.is_empty() && totals.full == 0, "{totals:?}");
            if totals.insertions >= at_least {
                return Ok(totals);
            }
            ensure!(Instant::now() < deadline, "{at_least} rules wanted: {totals:?}");
            std::thread::sleep(Duration::from_micros(200));
        }
    };
    for (n, (flow, handle)) in (0u64..).zip(flows.zip(handles)) {
        if n % (ahead / 2) == 0 && n >= ahead {
            inserted(n - ahead / 2)?;
        }
        offloader.offer(Offer { flow, packets: 100, handle: handle.clone() });
    }
    inserted(handles.len() as u64)
}

fn handles(count: usize) -> Vec<Arc<OffloadHandle>> {
    let marks = Arc::default();
    (0..count).map(|_| Arc::new(OffloadHandle::new(&marks))).collect()
}

fn config() -> Config {
    Config { rules_of_a_port: 2 * MILLION as u32, ..Config::default() }
}

fn offers(plan: &Plan) -> Result<()> {
    let (card, count) = (Card::new(plan, "")?, plan.items);
    let offloader = card.offloader(config())?;
    let (megaflows, handles) = (flows(count)?.collect::<Vec<_>>(), handles(count));
    let ahead = config().waiting as u64 / 2;
    let (ns, totals) = nanoseconds(count, || offer_all(&offloader, megaflows.into_iter(), &handles, ahead))?;
    ensure!(totals.refused.is_empty(), "{totals:?}");
    figure("offers", ns);
    Ok(())
}

/// Bytes of memory that this process has.
fn resident() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0)
}

fn memory_of_queue(plan: &Plan) -> Result<()> {
    let card = Card::new(plan, "")?;
    let mut queue = card.queue()?;
    // What is there once, whatever the number of rules.
    let first = fill(&mut queue, flows(1000)?.map(|flow| card.rule(&flow).map(std::borrow::Cow::Owned)))?;
    empty(&mut queue, first)?;
    let before = resident()?;
    let rules = fill(&mut queue, flows(MILLION)?.map(|flow| card.rule(&flow).map(std::borrow::Cow::Owned)))?;
    // The names of the rules are this measurement's own.
    let own = rules.len() * size_of::<RuleId>();
    figure("queue", (resident()? - before - own as f64) / MILLION as f64);
    figure("slot", FlowQueue::BYTES_A_RULE as f64);
    Ok(())
}

fn memory_of_offload(plan: &Plan) -> Result<()> {
    let card = Card::new(plan, "")?;
    let offloader = card.offloader(config())?;
    let first = handles(1000);
    offer_all(&offloader, flows(1000)?, &first, AHEAD)?;
    let before = resident()?;
    let handles = handles(MILLION);
    let own = handles.len() * size_of::<Arc<OffloadHandle>>();
    let totals = offer_all(&offloader, flows(MILLION + 1000)?.skip(1000), &handles, AHEAD)?;
    ensure!(totals.refused.is_empty(), "{totals:?}");
    figure("offload", (resident()? - before - own as f64) / MILLION as f64);
    Ok(())
}

/// Flows that move, and others that do not: what a look costs.
fn look(plan: &Plan, idle: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let pcap = directory.path().join("stations.pcap");
    write_stations(&pcap, ACTIVE)?;
    let wire = format!(",refuse=age,wire=(net_pcap1,rx_pcap={},infinite_rx=1)", pcap.display());
    let card = Card::new(plan, &wire)?;
    let offloader = card.offloader(config())?;
    let (movers, others) = (handles(ACTIVE), handles(idle));
    offer_all(&offloader, flows(idle)?, &others, config().waiting as u64 / 2)?;
    for (n, handle) in movers.iter().enumerate() {
        offloader.offer(Offer { flow: station(n)?, packets: 100, handle: handle.clone() });
    }
    let engine = Engine::start(&[plan.client_cpu], IdlePolicy::POLL)?;
    let shard = card.ports[0].open_shard(&engine.workers()[0])?;
    let id = engine.workers()[0].add("packets", Box::new(Packets { shard, burst: Burst::new(), next: Cycles::now() }));
    let deadline = Instant::now() + RULES_TIMEOUT;
    while movers.iter().any(|handle| handle.stats().packets == 0) {
        ensure!(Instant::now() < deadline, "packets do not come: {:?}", offloader.totals());
        std::thread::sleep(Duration::from_millis(100));
    }
    let before = offloader.totals();
    std::thread::sleep(Duration::from_millis(2600));
    let after = offloader.totals();
    drop(engine.workers()[0].remove(id));
    let (looks, cycles) = (after.looks - before.looks, after.look_cycles - before.look_cycles);
    ensure!(looks > 0 && after.flows as usize >= ACTIVE + idle / 2, "{after:?}");
    figure("look", Cycles(cycles).as_nanos() as f64 / 1e3 / looks as f64);
    drop((card.eal, card.pool));
    Ok(())
}

/// The flow to a station.
fn station(n: usize) -> Result<Megaflow> {
    let FlowMatch { key, mask } =
        "in_port(1),eth(dst=02:00:01:00:00:00),eth_type(0x0800),ipv4(frag=no)".parse::<FlowMatch>()?;
    let mut key = key;
    key.set(field::ETH_DST, 0x0200_0100_0000 + n as u64);
    let ufid = u128::from((n as u64 + 1).wrapping_mul(0xa076_1d64_78bd_642f)) | 1 << 127;
    Ok(Megaflow { ufid, ..Megaflow::new(key, mask, parse_actions("2")?) })
}

/// Each active flow gets a packet, five times a second.
struct Packets {
    shard: Box<dyn PortShard>,
    burst: Burst,
    next: Cycles,
}

impl Source for Packets {
    fn poll(&mut self, now: Cycles) -> usize {
        if now < self.next {
            return 0;
        }
        self.next = now + Duration::from_millis(200).into();
        for _ in 0..ACTIVE / 16 {
            self.shard.rx(&mut self.burst);
            self.burst.clear();
        }
        1
    }
}
