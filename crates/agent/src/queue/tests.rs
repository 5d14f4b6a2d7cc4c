use std::time::Duration;

use super::*;

const FREE: Merit = Merit { is_overdue: false, is_resident: true, cached: 0 };

fn anne() -> Tenant {
    Tenant::of_key(b"anne")
}

fn bert() -> Tenant {
    Tenant::of_key(b"bert")
}

const fn at(since: Duration) -> Moment {
    Moment::since_start(since)
}

fn entry(ticket: Ticket, class: Class, tenant: Tenant) -> Entry {
    let work = Tokens { read: 1000, written: 500 };
    Entry { ticket, class, tenant, weight: 1.0, work, arrived: at(Duration::from_millis(ticket)), start_by: None }
}

fn filled(entries: impl IntoIterator<Item = Entry>) -> Queue {
    let mut queue = Queue::new(1000);
    for entry in entries {
        assert_eq!(queue.enter(entry), Entered::Waits);
    }
    queue
}

/// Takes and finishes one after the other, as it was estimated.
fn served(queue: &mut Queue, count: usize) -> Vec<Entry> {
    let serve = |_| {
        let entry = queue.take(|_| Some(FREE))?;
        queue.finish(entry.ticket, entry.work);
        Some(entry)
    };
    (0..count).map_while(serve).collect()
}

fn share(entries: &[Entry], tenant: Tenant) -> usize {
    entries.iter().filter(|entry| entry.tenant == tenant).count()
}

#[test]
fn upper_classes_go_first_and_a_tenth_is_left_to_the_lower() {
    let upper = (0..100).map(|ticket| entry(ticket, Class::Interactive, anne()));
    let batch = (100..200).map(|ticket| entry(ticket, Class::Batch, anne()));
    let last = (200..300).map(|ticket| entry(ticket, Class::Background, anne()));
    let mut queue = filled(upper.chain(batch).chain(last));
    let first = served(&mut queue, 100);
    let of = |class| first.iter().filter(|entry| entry.class == class).count();
    assert_eq!((of(Class::Interactive), of(Class::Batch)), (90, 10));
    assert_eq!(first[0].class, Class::Interactive);
}

#[test]
fn the_lowest_has_its_turn_when_it_has_waited_longest() {
    let mut queue = filled([entry(0, Class::Background, anne())]);
    for ticket in 1..30 {
        queue.enter(entry(ticket, Class::Interactive, anne()));
        queue.enter(entry(ticket + 100, Class::Batch, anne()));
    }
    assert!(served(&mut queue, 10).iter().any(|entry| entry.class == Class::Background));
}

#[test]
fn two_tenants_get_the_same_however_many_each_of_them_asks() {
    let hog = (0..200).map(|ticket| entry(ticket, Class::Interactive, anne()));
    let modest = (200..220).map(|ticket| entry(ticket, Class::Interactive, bert()));
    let first = served(&mut filled(hog.chain(modest)), 40);
    assert!((19..=21).contains(&share(&first, bert())), "{}", share(&first, bert()));
}

#[test]
fn a_double_weight_is_a_double_share() {
    let heavy = (0..100).map(|ticket| Entry { weight: 2.0, ..entry(ticket, Class::Batch, anne()) });
    let light = (100..200).map(|ticket| entry(ticket, Class::Batch, bert()));
    let first = served(&mut filled(heavy.chain(light)), 60);
    assert!((38..=42).contains(&share(&first, anne())), "{}", share(&first, anne()));
}

#[test]
fn who_stayed_away_has_saved_up_nothing() {
    let mut queue = filled((0..200).map(|ticket| entry(ticket, Class::Interactive, anne())));
    served(&mut queue, 100);
    for ticket in 200..300 {
        queue.enter(entry(ticket, Class::Interactive, bert()));
    }
    let next = served(&mut queue, 40);
    assert!((18..=22).contains(&share(&next, bert())), "{}", share(&next, bert()));
}

#[test]
fn who_cancels_pays_for_what_was_done_and_no_more() {
    let mut queue =
        filled((0..20).map(|ticket| entry(ticket, Class::Batch, if ticket < 10 { anne() } else { bert() })));
    for _ in 0..5 {
        let anne = queue.take(|entry| (entry.tenant == anne()).then_some(FREE)).unwrap();
        queue.finish(anne.ticket, Tokens::default());
    }
    assert_eq!(queue.lines[2].accounts[&anne()].served, 0.0);
    let taken = queue.take(|entry| (entry.tenant == bert()).then_some(FREE)).unwrap();
    queue.finish(taken.ticket, Tokens { read: 10, written: 5 });
    assert_eq!(queue.lines[2].accounts[&bert()].served, 20.0);
    assert!(queue.charges.is_empty());
}

#[test]
fn among_tenants_about_even_the_cheapest_to_serve_goes_first() {
    let mut queue =
        filled([entry(0, Class::Batch, anne()), entry(1, Class::Batch, bert()), entry(2, Class::Batch, anne())]);
    let merit = |entry: &Entry| {
        let cached = if entry.ticket == 2 { 900 } else { 0 };
        Some(Merit { is_overdue: false, is_resident: entry.ticket != 0, cached })
    };
    let order: Vec<Ticket> = std::iter::from_fn(|| queue.take(merit).map(|entry| entry.ticket)).collect();
    assert_eq!(order, [2, 1, 0]);
}

#[test]
fn one_that_is_overdue_is_passed_no_more() {
    let mut queue = filled([entry(0, Class::Batch, anne()), entry(1, Class::Batch, anne())]);
    let merit =
        |entry: &Entry| Some(Merit { is_overdue: entry.ticket == 0, is_resident: entry.ticket == 1, cached: 0 });
    assert_eq!(queue.take(merit).unwrap().ticket, 0);
}

#[test]
fn what_may_not_start_holds_nobody_up() {
    let mut queue = filled([entry(0, Class::Realtime, anne()), entry(1, Class::Background, anne())]);
    assert_eq!(queue.take(|entry| (entry.ticket == 1).then_some(FREE)).unwrap().ticket, 1);
    assert!(queue.take(|_| None).is_none());
    assert_eq!(queue.waiting(), 1);
}

#[test]
fn a_full_queue_sheds_the_lower_class_then_the_hog_then_refuses() {
    let mut queue = Queue::new(3);
    for ticket in 0..2 {
        queue.enter(entry(ticket, Class::Interactive, anne()));
    }
    queue.enter(entry(2, Class::Background, bert()));
    assert_eq!(queue.enter(entry(3, Class::Background, bert())), Entered::Full);
    assert_eq!(queue.enter(entry(4, Class::Interactive, anne())), Entered::Displaces(2));
    assert_eq!(queue.enter(entry(5, Class::Interactive, bert())), Entered::Displaces(4));
    assert_eq!(queue.enter(entry(6, Class::Interactive, anne())), Entered::Full);
    assert_eq!(queue.waiting(), 3);
}

#[test]
fn what_would_start_too_late_is_taken_out() {
    let mut queue = filled([
        Entry { start_by: Some(at(Duration::from_secs(5))), ..entry(0, Class::Batch, anne()) },
        entry(1, Class::Batch, anne()),
    ]);
    assert_eq!(queue.next_expiry(), Some(at(Duration::from_secs(5))));
    assert!(queue.expire(at(Duration::from_secs(5))).is_empty());
    assert_eq!(queue.expire(at(Duration::from_secs(6))), [0]);
    assert_eq!((queue.waiting(), queue.next_expiry()), (1, None));
}

#[test]
fn tenants_that_are_gone_leave_nothing_behind() {
    let mut queue = Queue::new(10_000);
    for ticket in 0..5000 {
        queue.enter(entry(ticket, Class::Batch, Tenant::of_key(&ticket.to_le_bytes())));
        served(&mut queue, 1);
    }
    assert!(queue.lines[2].accounts.len() <= IDLE_MAX + 1, "{}", queue.lines[2].accounts.len());
    assert!(queue.charges.is_empty() && queue.waiting() == 0);
}

#[test]
fn who_comes_new_waits_for_the_turns_before_its_own() {
    let queue = filled((0..10).map(|ticket| entry(ticket, Class::Interactive, anne())));
    let ahead = |class, tenant| {
        let mut count = 0;
        queue.ahead_of(class, &tenant, |_| count += 1);
        count
    };
    assert_eq!(ahead(Class::Interactive, anne()), 10);
    assert_eq!(ahead(Class::Interactive, bert()), 1);
    assert_eq!(ahead(Class::Realtime, anne()), 0);
    assert_eq!(ahead(Class::Batch, bert()), 10);
}
