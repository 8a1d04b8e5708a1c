//! The order in which requests that found no room get the next slot. Pure: who waits for what in, who is next out.
//!
//! Each model has a line of its own. In a line the higher priority goes first; among equals those who ask take turns, so that one who sends a
//! hundred requests does not hold up another's one; and whoever asks is answered in the order of asking. When there is no room to wait either,
//! a newcomer takes the place of the last one of whoever has the most waiting, if that one has lower priority or so many that both
//! are nearer to equal afterwards.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use crate::caller::Who;

/// Requests that wait at once, for all models: each holds a connection and its body.
pub(crate) const MAX_WAITING: usize = 1024;

/// A request that waits. The larger one came later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(u64);

/// Where a request waits, and for whom it counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) model: Arc<str>,
    pub(crate) priority: u8,
    pub(crate) who: Who,
}

/// Requests of type `T`.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    lines: HashMap<Arc<str>, Line>,
    waiting: HashMap<Ticket, (Place, T)>,
    next: u64,
    max: usize,
}

/// Those who wait for one model, the highest priority first.
type Line = BTreeMap<Reverse<u8>, Level>;

/// Those who wait with one priority.
#[derive(Debug, Default)]
struct Level {
    /// Whose turn it is, each once.
    turns: VecDeque<Who>,
    of: HashMap<Who, VecDeque<Ticket>>,
}

/// A request has joined.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Joined<T> {
    pub(crate) ticket: Ticket,
    /// Who had to go for it.
    pub(crate) displaced: Option<T>,
}

impl<T> Queue<T> {
    /// Room for so many.
    pub(crate) fn new(max: usize) -> Self {
        Self { lines: HashMap::new(), waiting: HashMap::new(), next: 0, max }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether anybody waits for this model.
    pub(crate) fn waits_for(&self, model: &str) -> bool {
        self.lines.contains_key(model)
    }

    /// The models that are waited for.
    pub(crate) fn models(&self) -> Vec<Arc<str>> {
        self.lines.keys().cloned().collect()
    }

    /// Joins at the end of its own requests.
    ///
    /// # Errors
    /// The request, when there is no room to wait.
    pub(crate) fn join(&mut self, place: Place, request: T) -> Result<Joined<T>, T> {
        let mut displaced = None;
        if self.waiting.len() >= self.max {
            match self.gives_way(&place) {
                Some(ticket) => displaced = self.leave(ticket),
                None => return Err(request),
            }
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        let level = self.lines.entry(Arc::clone(&place.model)).or_default().entry(Reverse(place.priority)).or_default();
        if !level.of.contains_key(&place.who) {
            level.turns.push_back(place.who.clone());
        }
        level.of.entry(place.who.clone()).or_default().push_back(ticket);
        self.waiting.insert(ticket, (place, request));
        Ok(Joined { ticket, displaced })
    }

    /// The one that is at this place of a model's line, from 0 on.
    pub(crate) fn nth(&self, model: &str, at: usize) -> Option<(Ticket, &T)> {
        let ticket = order(self.lines.get(model)?).nth(at)?;
        Some((ticket, &self.waiting.get(&ticket)?.1))
    }

    /// How many of its line go before it.
    pub(crate) fn before(&self, ticket: Ticket) -> Option<usize> {
        let (place, _) = self.waiting.get(&ticket)?;
        order(self.lines.get(&place.model)?).position(|other| other == ticket)
    }

    /// It has what it waited for; the next turn is another's.
    pub(crate) fn serve(&mut self, ticket: Ticket) -> Option<T> {
        let (place, _) = self.waiting.get(&ticket)?;
        let level = self.lines.get_mut(&place.model)?.get_mut(&Reverse(place.priority))?;
        if let Some(at) = level.turns.iter().position(|who| *who == place.who)
            && let Some(who) = level.turns.remove(at)
        {
            level.turns.push_back(who);
        }
        self.leave(ticket)
    }

    /// It waits no more.
    pub(crate) fn leave(&mut self, ticket: Ticket) -> Option<T> {
        let (place, request) = self.waiting.remove(&ticket)?;
        let Place { model, priority, who } = place;
        let Some(line) = self.lines.get_mut(&model) else { return Some(request) };
        if let Some(level) = line.get_mut(&Reverse(priority)) {
            if let Some(own) = level.of.get_mut(&who) {
                own.retain(|other| *other != ticket);
                if own.is_empty() {
                    level.of.remove(&who);
                    level.turns.retain(|other| *other != who);
                }
            }
            if level.of.is_empty() {
                line.remove(&Reverse(priority));
            }
        }
        if line.is_empty() {
            self.lines.remove(&model);
        }
        Some(request)
    }

    /// Who makes room for a newcomer, if anybody does.
    fn gives_way(&self, newcomer: &Place) -> Option<Ticket> {
        // How many each has, and its latest.
        let mut groups = HashMap::<(u8, &Who), (usize, Ticket)>::new();
        for (&ticket, (place, _)) in &self.waiting {
            let (count, latest) = groups.entry((place.priority, &place.who)).or_insert((0, ticket));
            *count += 1;
            *latest = ticket.max(*latest);
        }
        let own = groups.get(&(newcomer.priority, &newcomer.who)).map_or(0, |&(count, _)| count);
        let worst =
            groups.into_iter().max_by_key(|&((priority, _), (count, latest))| (Reverse(priority), count, latest));
        let ((priority, _), (count, latest)) = worst?;
        let gives_way = priority < newcomer.priority || (priority == newcomer.priority && own + 1 < count);
        gives_way.then_some(latest)
    }
}

/// A line in the order of service, if nobody joins or leaves.
fn order(line: &Line) -> impl Iterator<Item = Ticket> {
    line.values().flat_map(|level| {
        let longest = level.of.values().map(VecDeque::len).max().unwrap_or(0);
        (0..longest)
            .flat_map(move |round| level.turns.iter().filter_map(move |who| level.of.get(who)?.get(round).copied()))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn place(priority: u8, who: &str) -> Place {
        Place { model: "m".into(), priority, who: Who::Name(who.into()) }
    }

    /// A queue in which these have joined one after the other, each by its number.
    fn queue(max: usize, joined: &[(u8, &str)]) -> Queue<usize> {
        let mut queue = Queue::new(max);
        for (number, &(priority, who)) in joined.iter().enumerate() {
            queue.join(place(priority, who), number).unwrap();
        }
        queue
    }

    fn served(queue: &mut Queue<usize>) -> Vec<usize> {
        std::iter::from_fn(|| {
            let (ticket, _) = queue.nth("m", 0)?;
            queue.serve(ticket)
        })
        .collect()
    }

    #[test]
    fn one_client_is_served_in_order() {
        let mut queue = queue(9, &[(1, "a"); 5]);
        assert_eq!(served(&mut queue), [0, 1, 2, 3, 4]);
        assert!(!queue.waits_for("m") && queue.len() == 0 && queue.models().is_empty());
    }

    #[test]
    fn the_higher_priority_goes_first() {
        assert_eq!(served(&mut queue(9, &[(1, "a"), (9, "b"), (5, "a"), (9, "a")])), [1, 3, 2, 0]);
    }

    #[test]
    fn clients_take_turns_whoever_sends_more() {
        let mut queue = queue(99, &[(1, "a"), (1, "a"), (1, "a"), (1, "a"), (1, "b"), (1, "c"), (1, "b")]);
        assert_eq!(served(&mut queue), [0, 4, 5, 1, 6, 2, 3]);
    }

    #[test]
    fn sixty_four_clients_are_served_as_they_came() {
        let names: Vec<String> = (0..64).map(|n| n.to_string()).collect();
        let joined: Vec<(u8, &str)> = names.iter().map(|name| (1, name.as_str())).collect();
        assert_eq!(served(&mut queue(64, &joined)), (0..64).collect::<Vec<_>>());
    }

    #[test]
    fn who_comes_back_after_its_turn_stands_behind_those_who_wait() {
        let mut queue = queue(9, &[(1, "a"), (1, "b")]);
        let (first, _) = queue.nth("m", 0).unwrap();
        assert_eq!(queue.serve(first), Some(0));
        queue.join(place(1, "a"), 2).unwrap();
        assert_eq!(served(&mut queue), [1, 2]);
    }

    #[test]
    fn whoever_leaves_makes_the_others_move_up() {
        let mut queue = queue(9, &[(1, "a"), (1, "b"), (1, "a")]);
        let (last, _) = queue.nth("m", 2).unwrap();
        assert_eq!(queue.before(last), Some(2));
        let (first, _) = queue.nth("m", 0).unwrap();
        assert_eq!(queue.leave(first), Some(0));
        assert_eq!(queue.leave(first), None);
        assert_eq!((queue.before(first), queue.before(last)), (None, Some(0)), "it is a's turn still");
    }

    #[test]
    fn models_have_lines_of_their_own() {
        let mut queue = queue(9, &[(1, "a")]);
        queue.join(Place { model: "n".into(), ..place(1, "a") }, 7).unwrap();
        assert_eq!((queue.nth("m", 1), queue.nth("n", 0).map(|(_, number)| *number)), (None, Some(7)));
        assert!(queue.nth("x", 0).is_none());
    }

    #[test]
    fn a_full_queue_makes_room_for_what_counts_more() {
        let full = || queue(4, &[(5, "a"), (5, "a"), (5, "a"), (5, "b")]);
        let joins = |priority, who: &str| full().join(place(priority, who), 9).map(|joined| joined.displaced);
        assert_eq!(joins(5, "a"), Err(9), "a has the most");
        assert_eq!(joins(4, "c"), Err(9), "less important");
        assert_eq!(joins(5, "c"), Ok(Some(2)), "the last one of a");
        assert_eq!(joins(5, "b"), Ok(Some(2)), "b has 2 then, as a has");
        assert_eq!(joins(6, "a"), Ok(Some(2)));
        let mut even = queue(2, &[(5, "a"), (5, "b")]);
        assert_eq!(even.join(place(5, "c"), 9), Err(9), "first come");
        let mut low = queue(2, &[(5, "a"), (1, "b")]);
        assert_eq!(low.join(place(5, "a"), 9).unwrap().displaced, Some(1), "the least important goes");
    }

    proptest! {
        /// Nobody waits longer than for one request of each other, per request of its own.
        #[test]
        fn nobody_is_overtaken_twice_by_the_same(joined in proptest::collection::vec(0..5u8, 1..60)) {
            let mut queue = Queue::new(99);
            for (number, who) in joined.iter().enumerate() {
                queue.join(place(1, &who.to_string()), (number, *who)).unwrap();
            }
            let mut order = Vec::new();
            while let Some((ticket, _)) = queue.nth("m", 0) {
                prop_assert_eq!(queue.before(ticket), Some(0));
                order.push(queue.serve(ticket).unwrap());
            }
            prop_assert_eq!(order.len(), joined.len());
            for (at, &(number, who)) in order.iter().enumerate() {
                let own_before = order[..at].iter().filter(|other| other.1 == who).count();
                prop_assert!(order[..at].iter().all(|other| other.1 != who || other.0 < number), "its own are in order");
                for other in 0..5u8 {
                    let others = order[..at].iter().filter(|served| served.1 == other).count();
                    prop_assert!(others <= own_before + 1);
                }
            }
        }

        /// Joining, leaving and being served in any order leaves nothing behind, and never more than there is room for.
        #[test]
        fn it_holds_what_has_not_left(events in proptest::collection::vec((0..4u8, 0..3u8, 0..4u8), 0..200)) {
            let mut queue = Queue::new(10);
            let mut inside = std::collections::BTreeSet::new();
            for (number, (event, priority, who)) in events.into_iter().enumerate() {
                match event {
                    0 | 1 => {
                        if let Ok(joined) = queue.join(place(priority, &who.to_string()), number) {
                            inside.insert(number);
                            if let Some(displaced) = joined.displaced {
                                prop_assert!(inside.remove(&displaced));
                            }
                        }
                    }
                    _ => {
                        if let Some((ticket, &number)) = queue.nth("m", usize::from(who)) {
                            let gone = if event == 2 { queue.serve(ticket) } else { queue.leave(ticket) };
                            prop_assert_eq!(gone, Some(number));
                            inside.remove(&number);
                        }
                    }
                }
                prop_assert!(queue.len() == inside.len() && queue.len() <= 10);
                prop_assert_eq!(queue.waits_for("m"), !inside.is_empty());
            }
        }
    }
}
