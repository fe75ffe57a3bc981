//! The matrix: each behaviour under each containerd and each dockerd, with each OCI runtime.
//!
//! A behaviour is a function that gets a fresh containerd with an OCI runtime chosen, and asserts.
//! [`matrix!`](crate::matrix!) makes one test of it for each cell, as `v1_7::runc::a_killed_container_tells_137`, and [`run`]
//! notes how each ended. From the notes of a full run the program `src/bin/matrix.rs` makes the tables, containerd's and
//! Docker's, that `make test` and `make test-vm` print. `make matrix` puts them into README.md: `make test`'s, with what this
//! machine had to skip taken from the other.
//!
//! To add a behaviour, write the function and add its name to the file's `matrix!`:
//!
//! ```ignore
//! matrix!(
//!     /* … */
//!     a_new_thing_works,
//! );
//!
//! fn a_new_thing_works(real: &Real<'_>) {
//!     let container = real.container();
//!     let pid = container.run_detached("exec /bin/sleep 1000");
//!     /* … */
//!     real.containerd.remove(&container.id);
//! }
//! ```
//!
//! Under Docker the behaviours of a file share a dockerd, which takes long to start: [`docker_matrix!`](crate::docker_matrix!)
//! makes one test for each cell, as `v28_5::runc`, in which they come one after another and get the
//! [`Docker`](crate::docker::Docker); see `tests/docker.rs`. `HOLDFAST_BEHAVIOURS=word` runs only those with the word in their names.
//!
//! The name, read as a sentence, is the row of the table. What cannot work in some cell calls `skip` with the reason and
//! returns, and gets a pattern in `tests/permitted-skips.txt`, or in `tests/vm/permitted-skips.txt` if it cannot work there.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;
use std::{env, fmt, fs, io};

use crate::container::{Container, Oci, is_without_controllers, runtime};
use crate::containerd::{Containerd, STOCK_RUNTIME};
use crate::docker::{Docker, Shim};
use crate::programs::{DockerVersion, Version};
use crate::skip::{self, is_root, skip};
use crate::{Scene, process, programs};

/// Makes the tests of a file: a module for each containerd, in it one for each OCI runtime, in it one for each behaviour.
/// Behaviours that start containerd with settings of their own get one that was only prepared: `matrix!(prepare; one, another)`.
#[macro_export]
macro_rules! matrix {
    (@version $module:ident $version:ident $start:ident $behaviours:tt) => {
        mod $module {
            $crate::matrix!(@oci holdfast_oci $version HoldfastOci $start $behaviours);
            $crate::matrix!(@oci runc $version Runc $start $behaviours);
            $crate::matrix!(@oci crun $version Crun $start $behaviours);
        }
    };
    (@oci $module:ident $version:ident $oci:ident $start:ident [$($behaviour:ident)*]) => {
        mod $module {
            use $crate::matrix::{Cell, run};
            const ROWS: &[&str] = &[$(stringify!($behaviour)),*];
            $(
                #[test]
                fn $behaviour() {
                    let version = $crate::programs::Version::$version;
                    let cell = Cell {
                        daemon: $crate::matrix::Daemon::Containerd(version),
                        oci: $crate::container::Oci::$oci,
                    };
                    run(
                        version,
                        |scene, version| $crate::containerd::Containerd::$start(scene, version),
                        cell,
                        module_path!(),
                        ROWS,
                        stringify!($behaviour),
                        super::super::$behaviour,
                    );
                }
            )*
        }
    };
    ($start:ident; $($behaviour:ident),* $(,)?) => {
        $crate::matrix!(@version v1_6 V1_6 $start [$($behaviour)*]);
        $crate::matrix!(@version v1_7 V1_7 $start [$($behaviour)*]);
        $crate::matrix!(@version v2_1 V2_1 $start [$($behaviour)*]);
    };
    ($($behaviour:ident),* $(,)?) => {
        $crate::matrix!(start; $($behaviour),*);
    };
}

/// Makes the tests of a file about Docker: a module for each dockerd, in it a test for each OCI runtime. dockerd may have
/// flags, which are given first: `docker_matrix!(with ["--flag"]; one, another)`.
#[macro_export]
macro_rules! docker_matrix {
    (@version $module:ident $version:ident $flags:tt $behaviours:tt) => {
        mod $module {
            $crate::docker_matrix!(@oci holdfast_oci $version HoldfastOci $flags $behaviours);
            $crate::docker_matrix!(@oci runc $version Runc $flags $behaviours);
            $crate::docker_matrix!(@oci crun $version Crun $flags $behaviours);
        }
    };
    (@oci $test:ident $version:ident $oci:ident $flags:tt [$($behaviour:ident)*]) => {
        #[test]
        fn $test() {
            $crate::matrix::run_on_docker(
                $crate::programs::DockerVersion::$version,
                $crate::container::Oci::$oci,
                module_path!(),
                &$flags,
                &[$((stringify!($behaviour), super::$behaviour)),*],
            );
        }
    };
    (with $flags:tt; $($behaviour:ident),* $(,)?) => {
        $crate::docker_matrix!(@version v20_10 V20_10 $flags [$($behaviour)*]);
        $crate::docker_matrix!(@version v28_5 V28_5 $flags [$($behaviour)*]);
    };
    ($($behaviour:ident),* $(,)?) => {
        $crate::docker_matrix!(with []; $($behaviour),*);
    };
}

/// What asks the shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// containerd, for ctr.
    Containerd(Version),
    /// The containerd of a dockerd.
    Docker(DockerVersion),
}

impl Daemon {
    /// Its version: no two have the same.
    pub fn name(self) -> &'static str {
        match self {
            Self::Containerd(version) => version.name(),
            Self::Docker(version) => version.name(),
        }
    }

    /// In which table it is.
    pub fn kind(self) -> Kind {
        match self {
            Self::Containerd(_) => Kind::Containerd,
            Self::Docker(_) => Kind::Docker,
        }
    }
}

/// Each kind of daemon has a table of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// containerd.
    Containerd,
    /// dockerd.
    Docker,
}

impl Kind {
    /// All, in the order of their tables.
    pub const ALL: [Self; 2] = [Self::Containerd, Self::Docker];

    fn daemons(self) -> Vec<Daemon> {
        match self {
            Self::Containerd => Version::ALL.into_iter().map(Daemon::Containerd).collect(),
            Self::Docker => DockerVersion::ALL.into_iter().map(Daemon::Docker).collect(),
        }
    }

    /// All cells, in the order of the table's columns.
    fn cells(self) -> impl Iterator<Item = Cell> {
        self.daemons().into_iter().flat_map(|daemon| Oci::ALL.into_iter().map(move |oci| Cell { daemon, oci }))
    }

    /// The file that is to be read first.
    fn first(self) -> &'static str {
        match self {
            Self::Containerd => "with_containerd",
            Self::Docker => "docker",
        }
    }
}

/// Where in the matrix a test is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Under which daemon.
    pub daemon: Daemon,
    /// With which OCI runtime below the shim.
    pub oci: Oci,
}

/// What a behaviour gets.
#[derive(Debug)]
pub struct Real<'a> {
    /// Its directory; nothing of it may be left at the end.
    pub scene: &'a Scene,
    /// A containerd of the cell's version.
    pub containerd: Containerd<'a>,
    /// The cell.
    pub cell: Cell,
}

impl Real<'_> {
    /// The container of a behaviour that needs only one.
    pub fn container(&self) -> Container<'_> {
        Container::new(&self.containerd, self.cell.oci)
    }

    /// Whether control groups neither limit nor count here; a skip is noted then.
    pub fn lacks_controllers(&self) -> bool {
        let lacks = is_without_controllers();
        if lacks {
            skip("version 2 of control groups has no controllers here");
        }
        lacks
    }

    /// One of several.
    pub fn numbered(&self, n: usize) -> Container<'_> {
        Container::numbered(&self.containerd, self.cell.oci, n)
    }
}

/// How a cell ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Pass,
    /// Not so, or not at all.
    Fail,
    /// It cannot run on this machine, and why.
    Skip(String),
}

/// Runs a behaviour in a cell and notes how it ended; `rows` are all behaviours of the file, in their order.
///
/// # Panics
/// If the behaviour does, or leaves something.
#[track_caller]
pub fn run(
    version: Version,
    begin: Begin,
    cell: Cell,
    module: &str,
    rows: &[&str],
    behaviour: &str,
    function: fn(&Real<'_>),
) {
    let row = Row {
        // with_containerd::v1_6::runc
        group: module.split("::").next().unwrap_or_default().into(),
        position: rows.iter().position(|r| *r == behaviour).expect("the macro gives both"),
        behaviour: behaviour.into(),
    };
    skip::take_reason();
    // A test that does not come to its end has failed.
    note(&row, cell, &Outcome::Fail);
    let ended = catch_unwind(AssertUnwindSafe(|| run_in_cell(version, begin, cell, function)));
    match ended {
        Ok(()) => note(&row, cell, &skip::take_reason().map_or(Outcome::Pass, Outcome::Skip)),
        Err(panic) => resume_unwind(panic),
    }
}

/// [`Containerd::start`] or [`Containerd::prepare`].
pub type Begin = for<'a> fn(&'a Scene, Version) -> Containerd<'a>;

fn run_in_cell(version: Version, begin: Begin, cell: Cell, function: fn(&Real<'_>)) {
    if let Some(refusal) = refusal(cell.oci) {
        return skip(refusal);
    }
    let scene = Scene::for_daemons();
    let containerd = begin(&scene, version);
    function(&Real { scene: &scene, containerd, cell });
}

fn refusal(oci: Oci) -> Option<&'static str> {
    if is_root() { oci.refusal() } else { Some("needs root") }
}

/// A behaviour under Docker.
pub type OnDocker = fn(&Docker<'_>);

/// Runs the behaviours of a file under one dockerd with such flags, one after another, and notes how each ended.
///
/// # Panics
/// At the end, if one of them did, or something is left.
#[track_caller]
pub fn run_on_docker(
    version: DockerVersion,
    oci: Oci,
    module: &str,
    flags: &'static [&'static str],
    behaviours: &[(&str, OnDocker)],
) {
    let cell = Cell { daemon: Daemon::Docker(version), oci };
    // docker::v28_5
    let group = module.split("::").next().unwrap_or_default();
    let wanted = env::var("HOLDFAST_BEHAVIOURS").unwrap_or_default();
    let rows: Vec<(Row, OnDocker)> = behaviours
        .iter()
        .enumerate()
        .filter(|(_, (name, _))| name.contains(&wanted))
        .map(|(position, (name, function))| {
            (Row { group: group.into(), position, behaviour: (*name).into() }, *function)
        })
        .collect();
    if let Some(refusal) = refusal(oci) {
        rows.iter().for_each(|(row, _)| note(row, cell, &Outcome::Skip(refusal.into())));
        // It is one test.
        skip::set_part(Some(group));
        skip(refusal);
        return skip::set_part(None);
    }
    // A test that does not come to its end has failed.
    rows.iter().for_each(|(row, _)| note(row, cell, &Outcome::Fail));
    let scene = Scene::for_daemons();
    let shim = if runtime() == STOCK_RUNTIME { Shim::Stock } else { Shim::Holdfast(oci) };
    let docker = Docker::start(&scene, version, shim, flags);
    let mut failed = Vec::new();
    for (row, function) in &rows {
        skip::take_reason();
        skip::set_part(Some(&row.behaviour));
        let started = Instant::now();
        let ended = catch_unwind(AssertUnwindSafe(|| {
            function(&docker);
            docker.clear();
        }));
        // For whoever looks where the time goes.
        println!("{}: {:.1} s", row.behaviour, started.elapsed().as_secs_f32());
        if ended.is_ok() {
            note(row, cell, &skip::take_reason().map_or(Outcome::Pass, Outcome::Skip));
        } else {
            failed.push(row.behaviour.as_str());
            docker.clear();
        }
    }
    skip::set_part(None);
    docker.finish();
    assert!(failed.is_empty(), "failed: {}", failed.join(", "));
}

/// One behaviour of one file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// The file.
    pub group: String,
    /// Where in the file.
    pub position: usize,
    /// The function.
    pub behaviour: String,
}

impl Row {
    /// The function's name as a sentence, without the number of the trap that it covers.
    fn title(&self) -> String {
        let name = self.behaviour.strip_prefix("trap_").unwrap_or(&self.behaviour);
        name.trim_start_matches(|c: char| c.is_ascii_digit() || c == '_').replace('_', " ")
    }
}

/// Writes `$HOLDFAST_MATRIX_DIR/<test>`, if that is set: one line of the fields that [`Matrix::read`] takes.
fn note(row: &Row, cell: Cell, outcome: &Outcome) {
    let Some(dir) = env::var_os("HOLDFAST_MATRIX_DIR") else { return };
    let (version, oci) = (cell.daemon.name(), cell.oci.name());
    let path = Path::new(&dir).join(format!("{}-{version}-{oci}-{}", row.group, row.behaviour));
    let line = line(row, cell, outcome);
    fs::write(&path, line).unwrap_or_else(|e| panic!("cannot note the result in {}: {e}", path.display()));
}

fn line(row: &Row, cell: Cell, outcome: &Outcome) -> String {
    let (word, reason) = match outcome {
        Outcome::Pass => ("pass", ""),
        Outcome::Fail => ("fail", ""),
        Outcome::Skip(reason) => ("skip", reason.as_str()),
    };
    let (version, oci) = (cell.daemon.name(), cell.oci.name());
    format!("{}\t{}\t{}\t{version}\t{oci}\t{word}\t{reason}\n", row.group, row.position, row.behaviour)
}

fn parse(line: &str) -> Option<(Row, Cell, Outcome)> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [group, position, behaviour, version, oci, word, reason] = fields[..] else { return None };
    let row = Row { group: group.into(), position: position.parse().ok()?, behaviour: behaviour.into() };
    let mut cells = Kind::ALL.into_iter().flat_map(Kind::cells);
    let cell = cells.find(|cell| cell.daemon.name() == version && cell.oci.name() == oci)?;
    let outcome = match word {
        "pass" => Outcome::Pass,
        "fail" => Outcome::Fail,
        "skip" => Outcome::Skip(reason.into()),
        _ => return None,
    };
    Some((row, cell, outcome))
}

/// The notes of one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matrix(Vec<(Row, Cell, Outcome)>);

/// Why there is no table.
#[derive(Debug)]
pub enum ReadError {
    /// A file of notes cannot be read.
    Io(PathBuf, io::Error),
    /// A line is not one of ours.
    Line(PathBuf, String),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(path, e) => write!(f, "cannot read {}: {e}", path.display()),
            Self::Line(path, line) => write!(f, "{}: not a result: {line:?}", path.display()),
        }
    }
}

impl std::error::Error for ReadError {}

impl Matrix {
    /// The notes that the cells of a run have left in `dir`.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read_notes(dir: &Path) -> Result<Self, ReadError> {
        let io = |e| ReadError::Io(dir.into(), e);
        let mut matrix = Self::default();
        for entry in fs::read_dir(dir).map_err(io)? {
            matrix.0.extend(Self::read(&entry.map_err(io)?.path())?.0);
        }
        matrix.0.sort_by(|(a, _, _), (b, _, _)| a.cmp(b));
        Ok(matrix)
    }

    /// What [`Matrix::lines`] wrote.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let text = fs::read_to_string(path).map_err(|e| ReadError::Io(path.into(), e))?;
        let read = |line: &str| parse(line).ok_or_else(|| ReadError::Line(path.into(), line.into()));
        text.lines().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// The part that is about daemons of one kind.
    pub fn of(&self, kind: Kind) -> Self {
        Self(self.0.iter().filter(|(_, cell, _)| cell.daemon.kind() == kind).cloned().collect())
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One line for each cell: file, position, behaviour, version of the daemon, OCI runtime, outcome, reason of a skip; tabs between.
    pub fn lines(&self) -> String {
        self.0.iter().map(|(row, cell, outcome)| line(row, *cell, outcome)).collect()
    }

    /// Takes from another machine's matrix the cells that this one's had to skip.
    pub fn fill_from(&mut self, other: &Self) {
        for (row, cell, outcome) in &mut self.0 {
            let skipped = matches!(outcome, Outcome::Skip(_));
            let seen = other.0.iter().find(|(r, c, _)| skipped && r == row && c == cell);
            *outcome = seen.map_or_else(|| outcome.clone(), |(_, _, seen)| seen.clone());
        }
    }

    /// How many cells passed, failed and were skipped.
    pub fn count(&self) -> (usize, usize, usize) {
        let count = |f: fn(&Outcome) -> bool| self.0.iter().filter(|(_, _, o)| f(o)).count();
        (count(|o| *o == Outcome::Pass), count(|o| *o == Outcome::Fail), count(|o| matches!(o, Outcome::Skip(_))))
    }

    /// The table of a kind of daemons in Markdown: a row for each behaviour below a heading for its file, a column for each
    /// cell.
    pub fn table(&self, kind: Kind) -> String {
        let cells = self.0.iter().filter(|(_, cell, _)| cell.daemon.kind() == kind);
        let mut rows: Vec<&Row> = cells.map(|(row, _, _)| row).collect();
        rows.sort_by_key(|row| (row.group != kind.first(), *row));
        rows.dedup();
        let columns: Vec<Cell> = kind.cells().collect();
        let heads = columns.iter().map(|c| format!(" {}<br>{} |", c.daemon.name(), c.oci.name()));
        let mut text = format!("| |{}\n|---|{}\n", heads.collect::<String>(), "---|".repeat(columns.len()));
        let mut group = "";
        for row in rows {
            if row.group != group {
                group = &row.group;
                text += &format!("| **{}** |{}\n", group.replace('_', " "), " |".repeat(columns.len()));
            }
            let marks = columns.iter().map(|cell| format!(" {} |", self.mark(row, *cell)));
            text += &format!("| {} |{}\n", row.title(), marks.collect::<String>());
        }
        text
    }

    fn mark(&self, row: &Row, cell: Cell) -> &'static str {
        match self.0.iter().find(|(r, c, _)| r == row && *c == cell).map(|(_, _, outcome)| outcome) {
            Some(Outcome::Pass) => PASS,
            Some(Outcome::Fail) => FAIL,
            Some(Outcome::Skip(_)) => SKIP,
            None => ABSENT,
        }
    }

    /// The reasons of skips, each once.
    pub fn reasons(&self) -> Vec<&str> {
        let mut reasons: Vec<_> =
            self.0.iter().filter_map(|(_, _, o)| if let Outcome::Skip(r) = o { Some(r) } else { None }).collect();
        reasons.sort();
        reasons.dedup();
        reasons.into_iter().map(String::as_str).collect()
    }
}

const PASS: &str = "✓";
const FAIL: &str = "✗";
const SKIP: &str = "–";
/// The cell has not been run.
const ABSENT: &str = "?";

/// Whether two tables say the same. What `b`'s machine had to skip may be in `a` from elsewhere; with `other_machine` also
/// the other way round.
///
/// # Errors
/// The first rows that differ: `a`'s, then `b`'s.
pub fn compare(a: &str, b: &str, other_machine: bool) -> Result<(), (String, String)> {
    let rows = |text: &str| -> Vec<String> { text.lines().map(str::to_owned).collect() };
    let (a, b) = (rows(a), rows(b));
    for n in 0..a.len().max(b.len()) {
        let row = |rows: &[String]| rows.get(n).cloned().unwrap_or_else(|| "(no such row)".into());
        let (a, b) = (row(&a), row(&b));
        if !same_row(&a, &b, other_machine) {
            return Err((a, b));
        }
    }
    Ok(())
}

fn same_row(a: &str, b: &str, other_machine: bool) -> bool {
    let (a, b): (Vec<&str>, Vec<&str>) = (a.split('|').collect(), b.split('|').collect());
    let same = |(a, b): (&&str, &&str)| {
        let (a, b) = (a.trim(), b.trim());
        a == b || (a, b) == (PASS, SKIP) || (other_machine && (a, b) == (SKIP, PASS))
    };
    a.len() == b.len() && a.iter().zip(&b).all(same)
}

/// The machine and the programs of this run, in one line: what the table of that kind was seen with.
pub fn seen_with(kind: Kind) -> String {
    let version = |path: Option<PathBuf>| {
        let output = path.map(|p| process::run(std::process::Command::new(p).arg("--version")).stdout);
        let text = String::from_utf8_lossy(&output.unwrap_or_default()).into_owned();
        version_in(&text).unwrap_or("not there").to_owned()
    };
    let versions = |paths: &mut dyn Iterator<Item = Option<PathBuf>>| -> String {
        paths.flatten().map(|path| version(Some(path))).collect::<Vec<_>>().join(", ")
    };
    let containerd = |v| programs::peer_of(v, "containerd");
    let daemons = match kind {
        Kind::Containerd => format!("containerd {}", versions(&mut Version::ALL.into_iter().map(containerd))),
        Kind::Docker => format!(
            "dockerd {} on containerd {}",
            versions(&mut DockerVersion::ALL.into_iter().map(|v| programs::docker_peer(v, "dockerd"))),
            versions(&mut DockerVersion::ALL.into_iter().map(|v| containerd(v.containerd()))),
        ),
    };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{daemons}; runc {}; crun {}; Linux {}, cgroup mode {}",
        version(programs::peer("runc")),
        version(programs::peer("crun")),
        kernel.trim().split(['-', '+']).next().unwrap_or_default(),
        cgroup_mode(),
    )
}

/// The first word of the first line that begins as a version does, without what a distribution adds.
fn version_in(text: &str) -> Option<&str> {
    let words = text.lines().next()?.split_whitespace().map(|w| w.trim_start_matches('v'));
    let word = words.into_iter().find(|w| w.starts_with(|c: char| c.is_ascii_digit()))?;
    word.split(['~', '+', '-', ',']).next()
}

/// The same words that [`seen_with`] ends with.
pub fn cgroup_mode() -> &'static str {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        "unified"
    } else if root.join("unified").exists() {
        "hybrid"
    } else {
        "legacy"
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn row(position: usize, behaviour: &str) -> Row {
        Row { group: "with_containerd".into(), position, behaviour: behaviour.into() }
    }

    fn cell(version: Version, oci: Oci) -> Cell {
        Cell { daemon: Daemon::Containerd(version), oci }
    }

    fn sample() -> Matrix {
        let skipped = || Outcome::Skip("not here".into());
        Matrix(vec![
            (row(1, "trap_42_b_works"), cell(Version::V1_6, Oci::HoldfastOci), Outcome::Pass),
            (row(0, "a_works"), cell(Version::V1_6, Oci::HoldfastOci), Outcome::Fail),
            (row(0, "a_works"), cell(Version::V2_1, Oci::Crun), skipped()),
            (row(1, "trap_42_b_works"), cell(Version::V2_1, Oci::Crun), skipped()),
        ])
    }

    #[test]
    fn a_line_is_read_as_it_was_written() {
        for (row, cell, outcome) in sample().0 {
            assert_eq!(parse(line(&row, cell, &outcome).trim_end_matches('\n')), Some((row, cell, outcome)));
        }
        assert_eq!(parse("no result"), None);
    }

    #[test]
    fn rows_come_in_the_order_of_the_file_and_missing_cells_show() {
        let table = sample().table(Kind::Containerd);
        let rows: Vec<&str> = table.lines().skip(3).collect();
        assert_eq!(
            rows,
            ["| a works | ✗ | ? | ? | ? | ? | ? | ? | ? | – |", "| b works | ✓ | ? | ? | ? | ? | ? | ? | ? | – |"]
        );
        assert_eq!(sample().count(), (1, 1, 2));
        assert_eq!(sample().reasons(), ["not here"]);
    }

    #[test]
    fn docker_has_a_table_of_its_own() {
        let mut matrix = sample();
        let row = Row { group: "docker".into(), position: 0, behaviour: "run_works".into() };
        let cell = Cell { daemon: Daemon::Docker(DockerVersion::V28_5), oci: Oci::Runc };
        matrix.0.push((row.clone(), cell, Outcome::Pass));
        assert_eq!(parse(line(&row, cell, &Outcome::Pass).trim_end_matches('\n')), Some((row, cell, Outcome::Pass)));
        let table = matrix.table(Kind::Docker);
        assert!(table.contains("| 20.10<br>holdfast-oci |") && table.contains(" 28.5<br>crun |\n"), "{table}");
        let rows: Vec<&str> = table.lines().skip(3).collect();
        assert_eq!(rows, ["| run works | ? | ? | ? | ? | ✓ | ? |"]);
        assert_eq!(matrix.table(Kind::Containerd), sample().table(Kind::Containerd));
        assert_eq!(matrix.of(Kind::Containerd), sample());
        assert!(sample().of(Kind::Docker).is_empty());
    }

    #[test]
    fn what_was_skipped_is_filled_from_another_machine_and_nothing_else_is() {
        let mut filled = sample();
        let seen = (row(0, "a_works"), cell(Version::V2_1, Oci::Crun), Outcome::Pass);
        let doubted = (row(0, "a_works"), cell(Version::V1_6, Oci::HoldfastOci), Outcome::Pass);
        filled.fill_from(&Matrix(vec![doubted, seen.clone()]));
        let mut expected = sample();
        expected.0[2] = seen;
        assert_eq!(filled, expected);
    }

    #[test]
    fn a_skip_may_be_shown_from_elsewhere_and_a_failure_never() {
        let (passed, skipped, failed) = ("| a | ✓ | ✓ |", "| a | ✓ | – |", "| a | ✓ | ✗ |");
        assert!(compare(passed, passed, false).is_ok());
        assert!(compare(passed, skipped, false).is_ok());
        assert!(compare(skipped, passed, false).is_err());
        assert!(compare(skipped, passed, true).is_ok());
        assert!(compare(passed, failed, false).is_err());
        assert!(compare(passed, failed, true).is_err());
        assert!(compare(passed, "", true).is_err());
    }

    #[test]
    fn versions_are_found_in_what_the_programs_print() {
        let samples = [
            ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1", "1.6.20"),
            ("containerd github.com/containerd/containerd/v2 2.1.9+unknown ", "2.1.9"),
            ("containerd containerd.io v1.7.27 05044ec0a9a75232cad458027ca83437aae3f4da", "1.7.27"),
            ("Docker version 20.10.24+dfsg1, build 297e128", "20.10.24"),
            ("Docker version 28.5.2, build ecc6942", "28.5.2"),
            ("runc version 1.1.5+ds1\ncommit: 1.1.5", "1.1.5"),
            ("crun version 1.8.1\n", "1.8.1"),
        ];
        for (text, version) in samples {
            assert_eq!(version_in(text), Some(version));
        }
    }
}
