//! What it costs a core to count a request while another core counts too.
//!
//! `cargo bench --bench contention`; `-- --test` runs each once.
//!
//! Each case runs on one core alone and then on two at once, on the same records. "No gap" is one call
//! after the other: an upper bound, as no core does nothing but count. "A request apart" leaves as much
//! time between two calls as a request takes a core: what a proxy sees.
//!
//! # From 2 cores to 64
//! Estimated, not measured. Measured on two cores of one AMD EPYC, a request apart:
//! picking and counting takes 69 ns alone and 104 with the other core, all of which is the endpoint's
//! word, as counting in the version alone takes 47 and 48. Without parts it would be 57 and 165. A shared
//! counter costs 42 ns more when every other addition finds its line in the other core's cache, so
//! fetching a line takes about 80 ns; between chiplets or sockets let it be 100 to 200.
//!
//! What cores still share is written in two cache lines at most: of the endpoint that is picked (its
//! word and its count of requests) and, only read, of the one it was compared with. All else
//! that is written belongs to one core; the table is read, and fetched anew only after a publication.
//! - A core: among 64 nearly every touch finds the line elsewhere. The two reads of a pick overlap, so
//!   a request waits for some three fetches (pick, count in, count out): 0.3 to 0.6 µs of about 14, 2 to
//!   4 %, however many cores there are.
//! - A line: it is in one cache at a time, so at 100 to 200 ns a fetch it can be taken 5 to 10 million
//!   times a second. With three takes a request that is 1.7 to 3.3 million requests/s an endpoint, and the
//!   waiting begins to show at half of it. 64 cores that serve 70,000 requests/s each send 4.5
//!   million: 450,000 to each of 10 endpoints, a line that is busy for 14 to 27 % of the time. Below five
//!   endpoints for the whole proxy the lines would limit it, were there endpoints that answer a million
//!   requests/s each.
//! - Memory: each core's part of a version takes some 650 bytes, so 20,000 versions take 26 MB with two
//!   cores and 0.8 GB with 64.

use std::{
    hint::black_box,
    sync::{
        Arc, Barrier,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use proxy::hot::{self, HotPath, Version};
use rustix::thread::{CpuSet, sched_setaffinity};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// About what a request takes a core, with all that the kernel does for it.
const REQUEST: Duration = Duration::from_micros(14);

/// Measures what counting costs on one core and on two at once.
#[derive(Parser)]
struct Args {
    /// Run each case for a moment, to see that it runs
    #[arg(long)]
    test: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

struct Case {
    name: &'static str,
    call: Box<dyn Fn(&mut fastrand::Rng) + Sync>,
}

impl Case {
    fn new(name: &'static str, call: impl Fn(&mut fastrand::Rng) + Sync + 'static) -> Self {
        Self { name, call: Box::new(call) }
    }
}

fn cases() -> Vec<Case> {
    let count = |endpoints: u16| {
        let version = Version::new(endpoints);
        move |rng: &mut fastrand::Rng| {
            let picked = version.pick(rng).expect("there are endpoints");
            version.count(picked, black_box(1_000)).expect("it is far from the bound");
        }
    };
    let version = Version::new(10);
    let hot = HotPath::new(1_000, 10);
    let unsharded = Unsharded::default();
    let word = AtomicU64::new(0);
    let shared = Arc::new(0_u8);
    vec![
        Case::new("nothing shared", |rng| _ = black_box(rng.u64(..))),
        Case::new("decide, 1000 services", move |_| {
            black_box(hot.decide(black_box("/s7/cart")).expect("there is a route"));
        }),
        Case::new("pick and count, 10 endpoints", count(10)),
        Case::new("pick and count, 1 endpoint", count(1)),
        Case::new("count in the version only", move |_| {
            version.count_in_version(black_box(1_000)).expect("it is far from the bound");
        }),
        Case::new("the same without parts, 10 endpoints", move |rng| unsharded.count(rng)),
        Case::new("one shared counter", move |_| _ = black_box(word.fetch_add(1, Relaxed))),
        Case::new("one shared Arc, cloned and dropped", move |_| drop(black_box(Arc::clone(&shared)))),
    ]
}

/// The counters of a request as they would be if all cores shared them, to compare with. Kinder than
/// life: they are few and close together.
#[derive(Default)]
struct Unsharded {
    requests: AtomicU64,
    cluster: Arc<Counters>,
    endpoints: [Endpoint; 10],
}

#[derive(Default)]
struct Counters {
    concurrency: AtomicU64,
    class: AtomicU64,
    bucket: AtomicU64,
    micros: AtomicU64,
}

#[derive(Default)]
#[repr(align(128))]
struct Endpoint {
    concurrency: AtomicU64,
    requests: AtomicU64,
}

impl Unsharded {
    fn count(&self, rng: &mut fastrand::Rng) {
        self.requests.fetch_add(1, Relaxed);
        let cluster = black_box(Arc::clone(&self.cluster));
        cluster.concurrency.fetch_add(1, Relaxed);
        let (one, other) = (&self.endpoints[rng.usize(0..10)], &self.endpoints[rng.usize(0..10)]);
        let one_is_better = one.concurrency.load(Relaxed) <= other.concurrency.load(Relaxed);
        let endpoint = if one_is_better { one } else { other };
        endpoint.concurrency.fetch_add(1, Relaxed);
        endpoint.requests.fetch_add(1, Relaxed);
        cluster.class.fetch_add(1, Relaxed);
        cluster.bucket.fetch_add(1, Relaxed);
        cluster.micros.fetch_add(700, Relaxed);
        endpoint.concurrency.fetch_sub(1, Relaxed);
        cluster.concurrency.fetch_sub(1, Relaxed);
        self.requests.fetch_sub(1, Relaxed);
    }
}

/// Nanoseconds a call, the mean of `threads` that each make `calls`.
fn without_gap(case: &Case, threads: usize, calls: u32) -> f64 {
    on_cores(threads, |barrier, rng| {
        for _ in 0..calls / 8 {
            (case.call)(rng); // brings what it needs into the cache
        }
        barrier.wait();
        let since = Instant::now();
        for _ in 0..calls {
            (case.call)(rng);
        }
        since.elapsed().as_nanos() as f64 / f64::from(calls)
    })
}

/// The same with the time of a request between two calls, give or take a half, that no two cores go in
/// step. Calls that something else fell into do not count, nor does looking at the clock.
fn a_request_apart(case: &Case, threads: usize, calls: u32) -> f64 {
    on_cores(threads, |barrier, rng| {
        let mut samples = Vec::with_capacity(calls as usize);
        let mut empty = Vec::with_capacity(calls as usize);
        barrier.wait();
        for _ in 0..calls {
            let gap = REQUEST.mul_f64(0.5 + rng.f64());
            let since = Instant::now();
            while since.elapsed() < gap {}
            let before = Instant::now();
            let between = Instant::now();
            (case.call)(rng);
            let after = Instant::now();
            empty.push((between - before).as_nanos());
            samples.push((after - between).as_nanos());
        }
        mean_of_most(&mut samples) - mean_of_most(&mut empty)
    })
}

/// Without the slowest of a hundred.
fn mean_of_most(samples: &mut [u128]) -> f64 {
    samples.sort_unstable();
    let most = &samples[..samples.len() * 99 / 100];
    most.iter().sum::<u128>() as f64 / most.len() as f64
}

/// The mean of what `run` returns on each of the first `threads` cores, all at once.
fn on_cores(threads: usize, run: impl Fn(&Barrier, &mut fastrand::Rng) -> f64 + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let (run, barrier) = (&run, &barrier);
    let sum: f64 = thread::scope(|scope| {
        let started: Vec<_> = (0..threads)
            .map(|core| {
                scope.spawn(move || {
                    let mut only = CpuSet::new();
                    only.set(core);
                    // Where it may not choose, it runs where it is put.
                    _ = sched_setaffinity(None, &only);
                    hot::work_on_core(core);
                    run(barrier, &mut fastrand::Rng::with_seed(core as u64))
                })
            })
            .collect();
        started.into_iter().map(|thread| thread.join().expect("no case panics")).sum()
    });
    sum / threads as f64
}

/// Lowest, median and highest.
fn spread(mut rounds: Vec<f64>) -> (f64, f64, f64) {
    rounds.sort_unstable_by(f64::total_cmp);
    (rounds[0], rounds[rounds.len() / 2], rounds[rounds.len() - 1])
}

/// ns a call of a case, on so many cores, so many calls each.
type Measure = fn(&Case, usize, u32) -> f64;

fn main() {
    let args = Args::parse();
    if thread::available_parallelism().map_or(1, usize::from) < 2 {
        return println!("skipped: there is only one core");
    }
    let (rounds, calls, apart) = if args.test { (1, 100, 10) } else { (15, 200_000, 3_000) };
    let cases = cases();
    let measures: [(&str, u32, Measure); 2] =
        [("no gap", calls, without_gap), ("a request apart", apart, a_request_apart)];
    for (title, calls, measure) in measures {
        println!(
            "{title}, ns a call: {:14} {:>21} {:>24}   ratio   more",
            "", "on 1 core", "on each of 2 cores"
        );
        for case in &cases {
            // One and two in turn, so that what disturbs meets both.
            let of = |threads| move |_| measure(case, threads, calls);
            let (mut one, mut two) = (Vec::new(), Vec::new());
            for round in 0..rounds {
                one.push(of(1)(round));
                two.push(of(2)(round));
            }
            let ((a, one, b), (c, two, d)) = (spread(one), spread(two));
            println!(
                "{:38} {one:7.1} ({a:6.1}–{b:7.1}) {two:9.1} ({c:6.1}–{d:7.1}) {:7.2} {:6.0}",
                case.name,
                two / one,
                two - one
            );
        }
    }
}
