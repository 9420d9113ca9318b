//! The command line.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use lexopt::{Arg, Parser, ValueExt};

use crate::rival::Rival;

const OUT: &str = "target/bench-compare";

pub(crate) const HELP: &str = "\
cargo xtask bench compare [--rivals NAMES] [--rounds N] [--backlog N] [--calls N] [--seconds N] [--out FOLDER]
    kafkaq and other queues on the same servers, in turns. Prints Markdown tables; a JSON file and plots (SVG) are written
    to the folder, target/bench-compare by default. It takes their tools: go, node, npm, mvn and javac.
    --rivals    of share-groups, asynq, apalis and bullmq only these, with commas between; `none` for kafkaq alone
    --rounds    3 by default; the median and the range of them is told
    --backlog   tasks to drain: 400,000 by default
    --calls     tasks that 64 callers publish: 32,000 by default
    --seconds   for which pick-up is measured at each pace, after a warm-up of 2 s: 5 by default

cargo xtask bench growth [--backlog SIZES] [--waiting SIZES] [--tasks N] [--jobs SIZES] [--processes SIZES]
                         [--partitions SIZES] [--backends PAIRS] [--out FOLDER]
    kafkaq alone, at sizes that grow. SIZES are numbers with commas between, or `none` to leave that out.
    --backlog     tasks that wait to be drained: 1000000 by default; 10000000 takes some minutes
    --waiting     tasks that are delayed, and tasks that were begun and put off: 1000000 by default
    --tasks       to be drained where something else grows: 100000 by default
    --jobs        at once: 1,10,100,1000 by default
    --processes   that share the tasks: 1,2,4,8 by default
    --partitions  of the task topic: 1,6,24,96 by default
    --backends    pairs of a broker and a store: rdkafka,redis/rskafka,redis by default
";

/// What to run, and how much of it.
#[derive(Debug, PartialEq)]
pub(crate) struct Compare {
    pub(crate) rivals: Vec<Rival>,
    pub(crate) rounds: usize,
    pub(crate) backlog: usize,
    pub(crate) calls: usize,
    pub(crate) seconds: usize,
    pub(crate) out: PathBuf,
}

impl Compare {
    /// None if help was asked for.
    pub(crate) fn parse(args: &mut Parser) -> Result<Option<Compare>> {
        let mut options = Compare {
            rivals: Rival::ALL.to_vec(),
            rounds: 3,
            backlog: 400_000,
            calls: 32_000,
            seconds: 5,
            out: xtask::root().join(OUT),
        };
        while let Some(arg) = args.next()? {
            match arg {
                Arg::Long("rivals") => options.rivals = rivals(&args.value()?.string()?)?,
                Arg::Long("rounds") => options.rounds = positive(args)?,
                Arg::Long("backlog") => options.backlog = positive(args)?,
                Arg::Long("calls") => options.calls = positive(args)?,
                Arg::Long("seconds") => options.seconds = positive(args)?,
                Arg::Long("out") => options.out = std::path::absolute(PathBuf::from(args.value()?))?,
                Arg::Long("help") | Arg::Short('h') => return Ok(None),
                other => return Err(other.unexpected().into()),
            }
        }
        Ok(Some(options))
    }
}

/// What grows, and how far.
#[derive(Debug, PartialEq)]
pub(crate) struct Growth {
    pub(crate) backlogs: Vec<usize>,
    pub(crate) waiting: Vec<usize>,
    pub(crate) tasks: usize,
    pub(crate) jobs: Vec<usize>,
    pub(crate) processes: Vec<usize>,
    pub(crate) partitions: Vec<usize>,
    /// In a driver's form: `BROKER,STORE`.
    pub(crate) backends: Vec<String>,
    pub(crate) out: PathBuf,
}

impl Growth {
    /// None if help was asked for.
    pub(crate) fn parse(args: &mut Parser) -> Result<Option<Growth>> {
        let mut growth = Growth {
            backlogs: vec![1_000_000],
            waiting: vec![1_000_000],
            tasks: 100_000,
            jobs: vec![1, 10, 100, 1000],
            processes: vec![1, 2, 4, 8],
            partitions: vec![1, 6, 24, 96],
            backends: ["rdkafka,redis", "rskafka,redis"].map(str::to_owned).into(),
            out: xtask::root().join(OUT),
        };
        while let Some(arg) = args.next()? {
            match arg {
                Arg::Long("backlog") => growth.backlogs = sizes(args)?,
                Arg::Long("waiting") => growth.waiting = sizes(args)?,
                Arg::Long("tasks") => growth.tasks = positive(args)?,
                Arg::Long("jobs") => growth.jobs = sizes(args)?,
                Arg::Long("processes") => growth.processes = sizes(args)?,
                Arg::Long("partitions") => growth.partitions = sizes(args)?,
                Arg::Long("backends") => {
                    growth.backends = args.value()?.string()?.split('/').map(str::to_owned).collect();
                }
                Arg::Long("out") => growth.out = std::path::absolute(PathBuf::from(args.value()?))?,
                Arg::Long("help") | Arg::Short('h') => return Ok(None),
                other => return Err(other.unexpected().into()),
            }
        }
        Ok(Some(growth))
    }
}

fn sizes(args: &mut Parser) -> Result<Vec<usize>> {
    let value = args.value()?.string()?;
    if value == "none" {
        return Ok(Vec::new());
    }
    value.split(',').map(number).collect()
}

fn rivals(names: &str) -> Result<Vec<Rival>> {
    if names == "none" {
        return Ok(Vec::new());
    }
    let mut rivals = Vec::new();
    for name in names.split(',') {
        let rival = name.parse()?;
        ensure!(!rivals.contains(&rival), "--rivals names {name} twice");
        rivals.push(rival);
    }
    Ok(rivals)
}

fn positive(args: &mut Parser) -> Result<usize> {
    number(&args.value()?.string()?)
}

/// A number as people write it: also `100_000`.
fn number(value: &str) -> Result<usize> {
    match value.replace('_', "").parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => bail!("{value} is not a number above 0"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Option<Compare>> {
        Compare::parse(&mut Parser::from_args(words))
    }

    #[test]
    fn sizes_and_rivals_are_read() {
        let words =
            ["--rivals", "asynq,bullmq", "--rounds=1", "--backlog", "20_000", "--out", "/tmp/figures"];
        let options = parse(&words).unwrap().unwrap();
        assert_eq!(options.rivals, [Rival::Asynq, Rival::BullMq]);
        assert_eq!((options.rounds, options.backlog), (1, 20_000));
        assert_eq!(options.out, PathBuf::from("/tmp/figures"));
        assert_eq!(parse(&["--rivals", "none"]).unwrap().unwrap().rivals, []);
        assert_eq!(parse(&[]).unwrap().unwrap().rivals, Rival::ALL);
    }

    #[test]
    fn invalid_options_are_refused() {
        for words in [
            ["--rounds", "0"],
            ["--rounds", "three"],
            ["--rivals", "celery"],
            ["--rivals", "asynq,asynq"],
            ["--fast", "1"],
        ] {
            parse(&words).unwrap_err();
        }
        assert_eq!(parse(&["--help"]).unwrap(), None);
    }

    #[test]
    fn sizes_that_grow_are_lists_and_none_is_empty() {
        let words =
            ["--backlog", "10_000,20_000", "--waiting", "none", "--backends", "memory,memory/rskafka,etcd"];
        let growth = Growth::parse(&mut Parser::from_args(words)).unwrap().unwrap();
        assert_eq!((growth.backlogs, growth.waiting), (vec![10_000, 20_000], vec![]));
        assert_eq!(growth.backends, ["memory,memory", "rskafka,etcd"]);
        Growth::parse(&mut Parser::from_args(["--jobs", "1,,2"])).unwrap_err();
    }
}
