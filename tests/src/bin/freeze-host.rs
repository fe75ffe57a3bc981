//! A shim that is frozen and thawed on command; see `holdfast_tests::freezable`.
#![allow(clippy::unwrap_used)]

use std::io::{self, BufRead};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use holdfast_proto::record::{Manager, run_dir};
use holdfast_shim::cli::HOLD_ACTION;
use holdfast_shim::cmd::hold;
use holdfast_shim::driver::{Config, Shim, chain, socket_path};
use holdfast_shim::freeze::{FreezeError, Frozen};
use holdfast_shim::io::spill::policy::OutputSettings;
use holdfast_shim::sys::process::become_subreaper;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::LocalSet;

/// How long a log may be busy before a freeze is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// A shim that runs, or one that stands still.
enum Host {
    Running(Rc<Shim>),
    Frozen(Frozen),
}

fn main() {
    let args: Vec<String> = env::args().collect();
    // As in the shim itself, whose program it stands for.
    if let [_, action, bundle] = &args[..]
        && action == HOLD_ACTION
    {
        return hold::run(io::stdin(), Path::new(bundle)).unwrap_or_else(|e| panic!("{}", chain(&e)));
    }
    let [_, namespace, group, address, events] = &args[..] else { panic!("four arguments are wanted") };
    let config = Config {
        namespace: namespace.clone(),
        group: group.clone(),
        events_address: events.clone(),
        instance: "freeze".to_owned(),
        manager: Manager::Containerd { address: String::new() },
        address: address.clone(),
        run_dir: run_dir(),
        executable: env::current_exe().unwrap(),
        runtime_deadline: Duration::from_secs(60),
        drain_deadline: Duration::from_secs(5),
        output: OutputSettings::load().unwrap(),
    };
    become_subreaper().unwrap();
    let listener = UnixListener::bind(socket_path(address)).unwrap();
    // As in the shim itself: one more thread, and only while a disk is waited for.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let shim = Shim::serve(config, listener.into()).unwrap();
        println!("ready");
        obey(Host::Running(shim)).await;
    });
    // The thread that reads commands waits for ever.
    std::process::exit(0);
}

async fn obey(mut host: Host) {
    let mut children = signal(SignalKind::child()).unwrap();
    let mut commands = commands();
    loop {
        let shim = match &host {
            Host::Running(shim) => Some(shim.clone()),
            Host::Frozen(_) => None,
        };
        let ended = async {
            match &shim {
                Some(shim) => shim.ended().await,
                None => std::future::pending().await,
            }
        };
        let command = tokio::select! {
            _ = children.recv() => None,
            () = ended => return,
            command = commands.recv() => command.map_or_else(|| std::process::exit(0), Some),
        };
        match (command.as_deref(), host) {
            (None, Host::Running(shim)) => {
                shim.reap();
                host = Host::Running(shim);
            }
            (None, frozen) => host = frozen,
            (Some("freeze"), Host::Running(shim)) => {
                host = Host::Frozen(freeze(&shim).await);
                println!("frozen");
            }
            (Some("thaw"), Host::Frozen(frozen)) => {
                host = Host::Running(Shim::thaw(frozen).unwrap_or_else(|e| panic!("{}", chain(&e))));
                println!("thawed");
            }
            (Some("state"), Host::Frozen(frozen)) => {
                println!("{}", std::str::from_utf8(&frozen.bytes).unwrap());
                host = Host::Frozen(frozen);
            }
            (Some("fds"), same) => {
                println!("{}", open_fds());
                host = same;
            }
            (Some(other), _) => panic!("{other:?} makes no sense now"),
        }
    }
}

async fn freeze(shim: &Shim) -> Frozen {
    let end = Instant::now() + PATIENCE;
    loop {
        match shim.freeze() {
            Ok(frozen) => return frozen,
            Err(FreezeError::Busy(_)) if Instant::now() < end => tokio::task::yield_now().await,
            Err(e) => panic!("{}", chain(&e)),
        }
    }
}

fn open_fds() -> usize {
    fs::read_dir(Path::new("/proc/self/fd")).unwrap().count()
}

fn commands() -> mpsc::UnboundedReceiver<String> {
    let (send, receive) = mpsc::unbounded_channel();
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    receive
}
