//! `cargo xtask`: the project's tool. Without arguments it prints its help.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is this tool's job")]

mod backends;
mod bench;
mod check;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use lexopt::{Arg, Parser, ValueExt};
use xtask::command::{catch_interrupts, interrupted};
use xtask::services::{Service, Services, are_containers};

const HELP: &str = "\
The tool of the kafkaq project. It needs Rust; it installs what else is missing, or says how to.

cargo xtask test [--quick | --backend NAMES | --only NAME] [--kafka redpanda]
    Checks everything: format, lints, documentation, licences, packages, and all tests, those on real
    servers too. It starts its own servers, and always stops them again. A failure stops nothing
    else; the end of the output lists failures, how to repeat them alone, and where the logs are.
    --quick     no servers, no documentation: what to run before each commit
    --only      one test binary, or of it one test, for example: --only kafkaq-tests::outage
                or one of the other checks: format, rust-version, architecture (what its document names
                exists), blocks (of Rust in documents), packages, licences, clippy, features,
                documentation, quickstart, cost (instructions per task)
    --backend   only the matrix, and of it the pairs of these, for example: --backend rskafka,etcd
                brokers: memory, rdkafka, rskafka; stores: memory, redis, redis-cluster, etcd, zookeeper.
                With no broker named it is all of them, and with no store all stores. Starts only the
                servers that they need.
    --kafka     redpanda: in Kafka's place, if a Docker engine responds

cargo xtask bench [pairs] [stores] [logs] [publish] [delays] [idle] [worker] [crowd] [seeds]
                  [--backend NAMES] [--mimalloc] [--observed]
    Figures of an optimized build on this machine, as Markdown: for everything, or for these parts.
    It judges nothing. Takes about twenty minutes. It starts its own servers, as `test` does.
    pairs       every broker with every store: publish rate, drain rate, pick-up latency
    stores      swaps per second, compared with the store's bare client
    logs        records per second, compared with the log's bare client
    publish     the publish rate in bulk and from 64 callers, compared with the log's bare client
    delays      the lateness of a million tasks that are delayed by up to two minutes
    idle        the cost of sixty idle queues
    worker      tasks per second of a worker, compared with loops around `get_job`
    crowd       how soon new tasks start next to ten thousand that fail
    seeds       seeds per second of the simulation
    --backend   only these, as with `test`
    --mimalloc  with mimalloc instead of the system's
    --observed  with metrics and spans

cargo xtask bench compare [OPTIONS]
    kafkaq beside Kafka's share groups, asynq, apalis and BullMQ, on the same servers and in turns. It
    takes go, node, npm, mvn and javac, and most of an hour; `cargo xtask bench compare --help` says how
    to do with less.

cargo xtask bench growth [OPTIONS]
    kafkaq alone with large backlogs, many waiting tasks, more jobs at once, processes and partitions. The
    same page says how far.

cargo xtask services up [--only NAMES | --all] [--env]
    Starts Kafka and Redis on free ports of 127.0.0.1 and leaves them running: as containers where a
    Docker engine responds, otherwise as processes. (KAFKAQ_SERVICES=docker or =native overrides it.)
    --only    others, for example: --only kafka,etcd
              There are kafka, redis, redis-cluster, etcd and zookeeper; and redpanda in Kafka's place,
              as a container only.
    --all     all of them but redpanda
    --env     prints only the variables that the tests read: eval \"$(cargo xtask services up --env)\"

cargo xtask services down [--only NAMES]
    Stops them and removes their data.

cargo xtask services status
    Lists what runs, and where.
";

fn main() -> ExitCode {
    match dispatch() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            // As a shell reports a program that Ctrl-C ended.
            if interrupted() { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
    }
}

fn dispatch() -> Result<()> {
    let mut args = Parser::from_env();
    let command = word(&mut args)?;
    if matches!(command.as_deref(), Some("test" | "bench" | "services")) {
        be_able_to_start_containers()?;
    }
    catch_interrupts()?;
    match command.as_deref() {
        None | Some("help") => {
            print!("{HELP}");
            Ok(())
        }
        Some("test") => check::everything(&check_options(args)?),
        Some("bench") => bench(args),
        Some("services") => services(args),
        Some(other) => bail!("`{other}` is not a command; `cargo xtask` lists them"),
    }
}

/// The client of a Docker engine takes a while to compile, so it is built only if an engine responds: then this process
/// is replaced by one that has it.
fn be_able_to_start_containers() -> Result<()> {
    if cfg!(feature = "containers") || !are_containers() {
        return Ok(());
    }
    eprintln!("servers will be containers; what starts them is compiled once, which takes a minute");
    let again = ["run", "--quiet", "--package", "xtask", "--features", "xtask/containers", "--"];
    let error = cargo(&again).args(std::env::args_os().skip(1)).exec();
    Err(error).context("cannot start cargo")
}

/// Returns the next word that isn't an option; `None` also for `--help`.
fn word(args: &mut Parser) -> Result<Option<String>> {
    match args.next()? {
        None | Some(Arg::Long("help") | Arg::Short('h')) => Ok(None),
        Some(Arg::Value(word)) => Ok(Some(word.string()?)),
        Some(other) => Err(other.unexpected().into()),
    }
}

fn check_options(mut args: Parser) -> Result<check::Options> {
    let mut options = check::Options::default();
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("quick") => options.quick = true,
            Arg::Long("only") => options.only = Some(args.value()?.string()?.parse()?),
            Arg::Long("backend") => options.backends = Some(args.value()?.string()?.parse()?),
            Arg::Long("kafka") => match args.value()?.string()?.as_str() {
                "kafka" => options.kafka = Service::Kafka,
                "redpanda" => options.kafka = Service::Redpanda,
                other => bail!("--kafka {other}: it must be kafka or redpanda"),
            },
            other => return Err(other.unexpected().into()),
        }
    }
    if options.only.is_some() && (options.quick || options.backends.is_some()) {
        bail!("--only selects one check and can't be combined with --quick or --backend");
    }
    if options.quick && (options.backends.is_some() || options.kafka != Service::Kafka) {
        bail!("--quick starts no servers, so it can't be combined with --backend or --kafka");
    }
    Ok(options)
}

fn bench(mut args: Parser) -> Result<()> {
    let words: Vec<_> = args.raw_args()?.collect();
    if words.first().is_some_and(|word| word == "compare" || word == "growth") {
        return bench::apart(&words);
    }
    bench::measure(&bench_options(Parser::from_args(words))?)
}

fn bench_options(mut args: Parser) -> Result<bench::Options> {
    let mut options = bench::Options::default();
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Value(part) => options.parts.push(part.string()?.parse()?),
            Arg::Long("backend") => options.backends = Some(args.value()?.string()?.parse()?),
            Arg::Long("mimalloc") => options.mimalloc = true,
            Arg::Long("observed") => options.observed = true,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(options)
}

fn services(mut args: Parser) -> Result<()> {
    let action = word(&mut args)?.context("services: up, down or status?")?;
    let usual = if action == "up" { Service::QUICKSTART } else { Service::KINDS };
    let mut which = usual.to_vec();
    let mut env = false;
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("only") => which = named(&args.value()?.string()?)?,
            Arg::Long("all") => which = Service::ALL.to_vec(),
            Arg::Long("env") if action == "up" => env = true,
            other => return Err(other.unexpected().into()),
        }
    }
    let services = Services::of(xtask::root().join(".services"));
    match action.as_str() {
        "up" => {
            for (service, url) in which.iter().zip(services.up(&which)?) {
                let prefix = if env { "export " } else { "" };
                println!("{prefix}{}={url}", service.env_var());
            }
            Ok(())
        }
        "down" => services.down(&which),
        "status" => {
            for (service, status) in which.iter().zip(services.status(&which)) {
                println!("{service:<15}{status}");
            }
            Ok(())
        }
        other => bail!("services {other}: it must be up, down or status"),
    }
}

/// The cargo that runs us, in the root of the workspace.
fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(xtask::root());
    // A build that is used only once is faster without incremental compilation.
    if std::env::var_os("CI").is_some() && std::env::var_os("CARGO_INCREMENTAL").is_none() {
        command.env("CARGO_INCREMENTAL", "0");
    }
    command
}

/// A comma-separated list of services.
fn named(list: &str) -> Result<Vec<Service>> {
    let find = |name: &str| {
        let service = Service::KINDS.iter().copied().find(|service| service.name() == name);
        service.with_context(|| format!("there is no service `{name}`"))
    };
    list.split(',').map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_named_by_a_comma_separated_list() {
        assert_eq!(named("redis,kafka").unwrap(), [Service::Redis, Service::Kafka]);
        assert_eq!(named("redis-cluster").unwrap(), [Service::RedisCluster]);
        assert!(named("redis,mongo").unwrap_err().to_string().contains("mongo"));
    }
}
