use super::*;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

struct Echo {
    inbox: Mailbox<channel::Sender<Instant>>,
    polls: Arc<AtomicUsize>,
}

impl Source for Echo {
    fn poll(&mut self, _: Cycles) -> usize {
        self.polls.fetch_add(1, Ordering::Relaxed);
        self.inbox.take().map_or(0, |reply| reply.send(Instant::now()).map_or(1, |()| 1))
    }
    fn arm(&mut self) -> bool {
        !self.inbox.is_empty()
    }
}

fn echo(engine: &Engine) -> (Sender<channel::Sender<Instant>>, SourceId, Arc<AtomicUsize>) {
    let worker = &engine.workers()[0];
    let (sender, inbox) = mailbox(worker.waker(), 16);
    let polls = Arc::new(AtomicUsize::new(0));
    let id = worker.add("echo", Box::new(Echo { inbox, polls: polls.clone() }));
    (sender, id, polls)
}

#[test]
fn a_sleeping_worker_wakes_for_each_message() {
    let engine = Engine::start(&[0], IdlePolicy::spin_for(Duration::ZERO)).unwrap();
    let (sender, ..) = echo(&engine);
    for _ in 0..1000 {
        let (reply, answer) = channel::bounded(1);
        sender.send(reply).unwrap();
        answer.recv_timeout(Duration::from_secs(10)).expect("the worker slept through a message");
    }
}

#[test]
fn an_idle_worker_is_asleep() {
    let engine = Engine::start(&[0], IdlePolicy::default()).unwrap();
    let (_sender, _, polls) = echo(&engine);
    std::thread::sleep(Duration::from_millis(50));
    let before = polls.load(Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(100));
    assert!(polls.load(Ordering::Relaxed) - before < 10);
    let report = engine.workers()[0].report();
    assert!(report.sleeps > 0 && report.sources[0].name == "echo");
}

#[test]
fn a_policy_change_reaches_a_sleeping_worker() {
    let engine = Engine::start(&[0], IdlePolicy::default()).unwrap();
    let (_sender, _, polls) = echo(&engine);
    std::thread::sleep(Duration::from_millis(20));
    engine.set_idle(IdlePolicy::POLL);
    std::thread::sleep(Duration::from_millis(20));
    let before = polls.load(Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(50));
    assert!(polls.load(Ordering::Relaxed) - before > 100);
}

#[test]
fn a_removed_source_comes_back_to_its_maker() {
    let engine = Engine::start(&[0], IdlePolicy::default()).unwrap();
    let (_, id, polls) = echo(&engine);
    assert!(engine.workers()[0].remove(id).is_some());
    let before = polls.load(Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(polls.load(Ordering::Relaxed), before);
    assert!(engine.workers()[0].remove(id).is_none());
}

#[test]
fn bad_cpus_are_refused_by_name() {
    let start = |cpus: &[usize]| Engine::start(cpus, IdlePolicy::default()).err().unwrap().to_string();
    assert!(start(&[9999]).contains("CPU 9999 is not available"));
    assert!(start(&[]).contains("at least one"));
    assert!(start(&[0, 0]).contains("twice"));
    let too_many: Vec<usize> = (0..65).collect();
    assert_eq!(start(&too_many), "workers: got 65, expected at most 64 (one CPU each)");
}
