//! What happens when nothing arrives: pings, aborts, and timeouts.

use super::tasks::Owner;
use super::{Connection, ConnectionError, Phase, Timeouts};
use clock::Cycles;

/// Commands are looked at this often while there are any: a fraction of the shortest timeout.
const LOOKS_PER_TIMEOUT: u64 = 16;

/// Points in time of one connection.
#[derive(Debug)]
pub(super) struct Timers {
    /// The next look at the clock.
    pub(super) next: Cycles,
    /// The last byte of the target.
    pub(super) heard: Cycles,
    /// Login and questions must be over.
    bring_up: Cycles,
    /// The ping under way was sent then.
    pinged: Option<Cycles>,
    /// Counts pings: the generation in their tags.
    pub(super) pings: u16,
    /// The task management function under way, the slot it is about and that slot's generation.
    function: Option<(Cycles, u16, u16)>,
    /// Requests wait although nothing is under way: the window is closed since then.
    stalled: Option<Cycles>,
    /// Counts task management functions.
    pub(super) functions: u16,
    period: Cycles,
}

impl Timers {
    pub(super) fn new(timeouts: &Timeouts, now: Cycles) -> Timers {
        let shortest = timeouts.task.min(timeouts.abort).min(timeouts.ping).min(timeouts.ping_interval);
        let period = Cycles((shortest.0 / LOOKS_PER_TIMEOUT).max(1)).min(timeouts.retry);
        Timers {
            next: now + period,
            heard: now,
            bring_up: now + timeouts.bring_up,
            pinged: None,
            pings: 0,
            function: None,
            stalled: None,
            functions: 0,
            period,
        }
    }

    /// A command went out at `now`: have a look before long.
    #[inline]
    pub(super) fn watch(&mut self, now: Cycles) {
        self.next = self.next.min(now + self.period);
    }

    /// The target answered a ping.
    pub(super) fn on_pong(&mut self) {
        self.pinged = None;
    }

    /// The target answered a task management function. Returns the slot and generation it was about, if the answer is to the
    /// one under way.
    pub(super) fn on_function_done(&mut self, count: u16) -> Option<(u16, u16)> {
        if count != self.functions {
            return None;
        }
        self.functions = self.functions.wrapping_add(1);
        self.function.take().map(|(_, slot, generation)| (slot, generation))
    }
}

impl Connection {
    /// Looks at the clock.
    pub(super) fn tick(&mut self, now: Cycles) -> Result<(), ConnectionError> {
        self.check_phase(now)?;
        self.check_life(now)?;
        self.check_tasks(now)?;
        self.check_window(now)?;
        self.wake_resting(now);
        let idle =
            self.tasks.in_use() == 0 && self.resting.is_empty() && self.timers.pinged.is_none() && self.is_ready();
        let period = if idle { self.config.timeouts.ping_interval } else { self.timers.period };
        self.timers.next = now + period;
        Ok(())
    }

    fn check_phase(&mut self, now: Cycles) -> Result<(), ConnectionError> {
        match self.phase {
            Phase::Ready => Ok(()),
            Phase::Draining(deadline) => {
                if self.tasks.in_use() == 0 || now >= deadline {
                    self.phase = Phase::LoggingOut;
                    self.timers.bring_up = now + self.config.timeouts.abort;
                    self.send_logout();
                }
                Ok(())
            }
            _ if now < self.timers.bring_up => Ok(()),
            Phase::Login(_) => Err(ConnectionError::Timeout("the target does not answer the login")),
            Phase::Discovery(_) => Err(ConnectionError::Timeout("the target does not answer the discovery")),
            Phase::Fencing => Err(ConnectionError::Timeout("the target does not answer a LUN reset")),
            Phase::Probing => Err(ConnectionError::Timeout("the LUN does not get ready")),
            Phase::LoggingOut => Err(ConnectionError::Timeout("the target does not answer the logout")),
        }
    }

    /// Asks for a sign of life after a silence, and gives up on a target that gives none.
    fn check_life(&mut self, now: Cycles) -> Result<(), ConnectionError> {
        let timeouts = &self.config.timeouts;
        if matches!(self.phase, Phase::Login(_)) {
            return Ok(());
        }
        match self.timers.pinged {
            Some(at) if now.since(at.max(self.timers.heard)) > timeouts.ping => {
                Err(ConnectionError::Timeout("the target does not answer a ping"))
            }
            None if now.since(self.timers.heard) >= timeouts.ping_interval => {
                self.timers.pings = self.timers.pings.wrapping_add(1);
                self.timers.pinged = Some(now);
                self.send_ping();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Aborts the command that takes too long, one at a time; gives the session up when even that is not answered. The next
    /// session's login then ends all its commands.
    fn check_tasks(&mut self, now: Cycles) -> Result<(), ConnectionError> {
        if let Some((sent_at, slot, generation)) = self.timers.function {
            let task = self.tasks.get(slot);
            if task.generation != generation || task.outcome.is_some() {
                // It ended by itself. The answer to the abort is still to come and will mean nothing.
                self.timers.function = None;
                self.timers.functions = self.timers.functions.wrapping_add(1);
            } else if now.since(sent_at) > self.config.timeouts.abort {
                return Err(ConnectionError::Timeout("the target neither ends a command nor aborts it"));
            }
            return Ok(());
        }
        let late = |active_at: Cycles| now.since(active_at) > self.config.timeouts.task;
        let oldest = self
            .tasks
            .live()
            .filter(|(_, task)| late(task.active_at) && task.outcome.is_none())
            .min_by_key(|(_, task)| task.active_at);
        let Some((slot, task)) = oldest else { return Ok(()) };
        if matches!(task.owner, Owner::Probe) {
            return Err(ConnectionError::Timeout("the target does not answer a question about the LUN"));
        }
        self.timers.function = Some((now, slot, task.generation));
        self.counters.aborts += 1;
        self.send_abort(slot);
        Ok(())
    }

    /// A window that stays closed with nothing under way will not open again: nothing is left that could open it.
    fn check_window(&mut self, now: Cycles) -> Result<(), ConnectionError> {
        if !self.is_ready() || self.tasks.in_use() > 0 || self.waiting.is_empty() {
            self.timers.stalled = None;
            return Ok(());
        }
        let since = *self.timers.stalled.get_or_insert(now);
        if now.since(since) > self.config.timeouts.task {
            return Err(ConnectionError::Timeout("the target's command window stays closed"));
        }
        Ok(())
    }

    fn wake_resting(&mut self, now: Cycles) {
        while let Some((at, _)) = self.resting.front()
            && *at <= now
        {
            let (_, pending) = self.resting.pop_front().expect("seen just now");
            self.counters.retries += 1;
            self.waiting.push_front(pending);
        }
    }
}
