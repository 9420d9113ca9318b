//! The fake broker.

use crate::wire::format::{Reader, TopicId, Writer};
use kafkaq_core::lock;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

pub(super) const PRODUCE: i16 = 0;
pub(super) const FETCH: i16 = 1;
pub(super) const LIST_OFFSETS: i16 = 2;
pub(super) const METADATA: i16 = 3;
pub(super) const API_VERSIONS: i16 = 18;
pub(super) const CREATE_TOPICS: i16 = 19;
pub(super) const DESCRIBE_CONFIGS: i16 = 32;

pub(super) enum Reply {
    Body(Writer),
    /// Respond after this time.
    Late(Duration, Writer),
    /// Respond once this is true.
    Once(watch::Receiver<bool>, Writer),
    /// Never respond.
    Silence,
    HangUp,
}

/// A request.
pub(super) struct Asked {
    pub(super) key: i16,
    pub(super) version: i16,
    pub(super) body: Reader,
}

impl Asked {
    fn flexible(&self) -> bool {
        matches!((self.key, self.version), (FETCH, 12..) | (METADATA, 9..))
    }

    /// An empty response.
    pub(super) fn writer(&self) -> Writer {
        Writer::new(self.flexible())
    }
}

/// A broker whose responses `answer` creates; what it leaves is answered as by a broker with the topic `t`.
pub(super) struct Broker {
    pub(super) address: String,
    pub(super) state: Arc<State>,
}

pub(super) struct State {
    /// The lowest and the highest version that it supports of each request.
    pub(super) knows: Mutex<HashMap<i16, (i16, i16)>>,
    pub(super) topic: Mutex<Topic>,
    pub(super) open: AtomicUsize,
    /// Whether every connection is closed.
    refuses: watch::Sender<bool>,
    /// How long every answer takes.
    pub(super) latency: Mutex<Duration>,
    /// The number of requests of each kind.
    pub(super) asked: Mutex<HashMap<i16, usize>>,
}

#[derive(Clone)]
pub(super) struct Topic {
    pub(super) id: Option<TopicId>,
    pub(super) partitions: i32,
    pub(super) controller: String,
    /// The other nodes.
    pub(super) others: Vec<String>,
}

impl State {
    pub(super) fn asked(&self, key: i16) -> usize {
        lock(&self.asked).get(&key).copied().unwrap_or_default()
    }

    pub(super) fn open(&self) -> usize {
        self.open.load(SeqCst)
    }

    /// Starts or stops closing all connections, including new ones.
    pub(super) fn refuse(&self, refuses: bool) {
        self.refuses.send_replace(refuses);
    }

    pub(super) fn set_topic(&self, edit: impl FnOnce(&mut Topic)) {
        edit(&mut lock(&self.topic));
    }
}

impl Broker {
    /// Creates a broker with topic ids.
    pub(super) async fn new(answer: impl Fn(&mut Asked) -> Option<Reply> + Send + Sync + 'static) -> Broker {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let knows = [
            (PRODUCE, (3, 9)),
            (FETCH, (4, 13)),
            (LIST_OFFSETS, (1, 7)),
            (METADATA, (0, 12)),
            (CREATE_TOPICS, (2, 7)),
            (DESCRIBE_CONFIGS, (1, 4)),
        ];
        let (id, controller) = (Some(TopicId([1; 16])), address.clone());
        let topic = Topic { id, partitions: 3, controller, others: Vec::new() };
        let state = Arc::new(State {
            knows: Mutex::new(knows.into()),
            topic: Mutex::new(topic),
            open: AtomicUsize::new(0),
            refuses: watch::Sender::new(false),
            latency: Mutex::default(),
            asked: Mutex::default(),
        });
        let answer = Arc::new(answer);
        let broker = Broker { address, state: state.clone() };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (answer, state) = (answer.clone(), state.clone());
                state.open.fetch_add(1, SeqCst);
                tokio::spawn(async move {
                    let mut refuses = state.refuses.subscribe();
                    tokio::select! {
                        biased;
                        _ = refuses.wait_for(|refuses| *refuses) => {}
                        () = serve(client, &state, &*answer) => {}
                    }
                    state.open.fetch_sub(1, SeqCst);
                });
            }
        });
        broker
    }

    /// Creates a broker whose `answer` handles only fetches.
    pub(super) async fn of_fetches(
        answer: impl Fn(&FetchAsked) -> Vec<Part> + Send + Sync + 'static,
    ) -> Broker {
        Broker::new(move |asked| {
            let fetch = FetchAsked::read(asked)?;
            let parts = answer(&fetch);
            let response = fetch.response(asked, &parts);
            let is_empty = |part: &Part| part.code == 0 && part.records.is_empty() && !part.is_cut;
            let has_nothing = parts.iter().all(is_empty);
            Some(match has_nothing {
                // As a server waits for records.
                true => Reply::Late(fetch.max_wait, response),
                false => Reply::Body(response),
            })
        })
        .await
    }
}

/// Serves a client until it disconnects.
async fn serve(mut client: TcpStream, state: &State, answer: &(impl Fn(&mut Asked) -> Option<Reply> + Sync)) {
    while let Ok(len) = client.read_i32().await {
        let mut request = vec![0; len as usize];
        if client.read_exact(&mut request).await.is_err() {
            return;
        }
        let mut header = Reader::new(request.into(), false);
        let (key, version, correlation) =
            (header.int16().unwrap(), header.int16().unwrap(), header.int32().unwrap());
        header.string().unwrap();
        let mut asked = Asked { key, version, body: header };
        let flexible = asked.flexible();
        asked.body = Reader::new(asked.body.bytes.clone(), flexible);
        asked.body.end().unwrap();
        *lock(&state.asked).entry(key).or_default() += 1;
        let reply = answer(&mut asked).or_else(|| by_default(&mut asked, state));
        let (wait, body) = match reply.unwrap_or(Reply::HangUp) {
            Reply::Body(body) => (Duration::ZERO, body),
            Reply::Late(wait, body) => (wait, body),
            Reply::Once(mut so, body) => {
                let _ = so.wait_for(|so| *so).await;
                (Duration::ZERO, body)
            }
            Reply::Silence => std::future::pending().await,
            Reply::HangUp => return,
        };
        let wait = wait + *lock(&state.latency);
        let mut gone = [0];
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // A client that waits sends nothing more.
            _ = client.peek(&mut gone) => return,
        }
        let mut frame = Writer::new(flexible);
        frame.int32(0);
        frame.int32(correlation);
        if key != API_VERSIONS {
            frame.end();
        }
        frame.bytes.extend(body.bytes);
        let size = frame.bytes.len() as i32 - 4;
        frame.bytes[..4].copy_from_slice(&size.to_be_bytes());
        if client.write_all(&frame.bytes).await.is_err() {
            return;
        }
    }
}

fn by_default(asked: &mut Asked, state: &State) -> Option<Reply> {
    let mut body = asked.writer();
    match asked.key {
        // Newer than supported: the client asks again.
        API_VERSIONS if asked.version > 0 => {
            body.int16(35);
            match asked.version {
                3 => body.bytes.extend([0; 6]),
                _ => body.bytes.extend([0; 8]),
            }
        }
        API_VERSIONS => {
            let knows = lock(&state.knows);
            body.int16(0);
            body.array(knows.len()).unwrap();
            for (key, (min, max)) in &*knows {
                body.int16(*key);
                body.int16(*min);
                body.int16(*max);
            }
        }
        METADATA => metadata(asked, &mut body, &lock(&state.topic)),
        LIST_OFFSETS => offsets(asked, &mut body),
        PRODUCE => produced(asked, &mut body),
        _ => return None,
    }
    Some(Reply::Body(body))
}

/// Describes a cluster of node 7, which is the controller and leads all partitions, and other nodes.
fn metadata(asked: &mut Asked, body: &mut Writer, topic: &Topic) {
    let by_id = asked.version >= 10;
    let names = asked
        .body
        .array(|topic| {
            if by_id {
                topic.topic_id()?;
            }
            let name = topic.string()?;
            topic.end()?;
            Ok(name.unwrap_or_default())
        })
        .unwrap();
    // Of versions that only rskafka sends.
    let is_library = asked.version < 7;
    assert!(asked.body.int8().unwrap() == 0 || is_library, "no topic may be created");
    body.int32(0);
    body.array(1 + topic.others.len()).unwrap();
    for (node, address) in (7..).zip([&topic.controller].into_iter().chain(&topic.others)) {
        let (host, port) = address.rsplit_once(':').unwrap();
        body.int32(node);
        body.string(host).unwrap();
        body.int32(port.parse().unwrap());
        body.no_string();
        body.end();
    }
    body.no_string();
    body.int32(7);
    body.array(names.len()).unwrap();
    for name in names {
        let partitions = if name == "t" { topic.partitions } else { 0 };
        body.int16(if partitions > 0 { 0 } else { 3 });
        body.string(&name).unwrap();
        if by_id {
            body.topic_id(topic.id.filter(|_| partitions > 0));
        }
        body.bool(false);
        body.array(partitions as usize).unwrap();
        for index in 0..partitions {
            body.int16(0);
            body.int32(index);
            body.int32(7);
            if !is_library {
                body.int32(3);
            }
            for _ in 0..if is_library { 2 } else { 3 } {
                body.array(1).unwrap();
                body.int32(7);
            }
            body.end();
        }
        if asked.version >= 8 {
            body.int32(0);
        }
        body.end();
    }
    body.end();
}

/// Every partition has the offsets from 5 to 9.
fn offsets(asked: &mut Asked, body: &mut Writer) {
    asked.body.int32().unwrap();
    asked.body.int8().unwrap();
    let topics = asked
        .body
        .array(|topic| Ok((topic.string()?, topic.array(|p| Ok((p.int32()?, p.int64()?)))?)))
        .unwrap();
    body.int32(0);
    body.array(topics.len()).unwrap();
    for (name, partitions) in topics {
        body.string(&name.unwrap()).unwrap();
        body.array(partitions.len()).unwrap();
        for (index, end) in partitions {
            body.int32(index);
            body.int16(0);
            body.int64(-1);
            body.int64(if end == -2 { 5 } else { 9 });
        }
    }
}

/// Every batch is at offset 5.
fn produced(asked: &mut Asked, body: &mut Writer) {
    assert_eq!(asked.version, 7);
    let (_transaction, _acks, _wait) =
        (asked.body.string().unwrap(), asked.body.int16().unwrap(), asked.body.int32().unwrap());
    let topics = asked
        .body
        .array(|topic| {
            let partition = |part: &mut Reader| Ok((part.int32()?, part.byte_array()?).0);
            Ok((topic.string()?.unwrap_or_default(), topic.array(partition)?))
        })
        .unwrap();
    body.array(topics.len()).unwrap();
    for (name, partitions) in topics {
        body.string(&name).unwrap();
        body.array(partitions.len()).unwrap();
        for index in partitions {
            body.int32(index);
            body.int16(0);
            body.int64(5);
            body.int64(-1);
            body.int64(0);
        }
    }
    body.int32(0);
}

/// A fetch as it was asked for.
pub(super) struct FetchAsked {
    pub(super) max_wait: Duration,
    pub(super) parts: Vec<PartAsked>,
}

pub(super) struct PartAsked {
    pub(super) name: Option<String>,
    pub(super) id: Option<TopicId>,
    pub(super) index: i32,
    pub(super) offset: i64,
    pub(super) epoch_below: i32,
    pub(super) max_bytes: i32,
}

/// The response for one partition.
#[derive(Clone, Default)]
pub(super) struct Part {
    pub(super) code: i16,
    pub(super) end: i64,
    pub(super) is_cut: bool,
    pub(super) aborted: Vec<(i64, i64)>,
    pub(super) records: Vec<u8>,
}

impl Part {
    pub(super) fn empty(end: i64) -> Part {
        Part { end, ..Part::default() }
    }

    pub(super) fn of(records: Vec<u8>) -> Part {
        Part { end: 1000, records, ..Part::default() }
    }

    pub(super) fn cut() -> Part {
        Part { end: 1000, is_cut: true, ..Part::default() }
    }

    pub(super) fn failed(code: i16) -> Part {
        Part { code, end: -1, ..Part::default() }
    }
}

impl FetchAsked {
    pub(super) fn read(asked: &mut Asked) -> Option<FetchAsked> {
        if asked.key != FETCH {
            return None;
        }
        let by_id = asked.version >= 13;
        let body = &mut asked.body;
        let (_replica, max_wait, _min) =
            (body.int32().unwrap(), body.int32().unwrap(), body.int32().unwrap());
        let (_max, isolation) = (body.int32().unwrap(), body.int8().unwrap());
        assert_eq!(isolation, 1, "only committed records");
        let (_session, _epoch) = (body.int32().unwrap(), body.int32().unwrap());
        let parts = body
            .array(|topic| {
                let (id, name) = match by_id {
                    true => (topic.topic_id()?, None),
                    false => (None, topic.string()?),
                };
                let mut parts = topic.array(|part| {
                    let (index, _epoch, offset) = (part.int32()?, part.int32()?, part.int64()?);
                    let epoch_below = if by_id { part.int32()? } else { -1 };
                    let (_first, max_bytes) = (part.int64()?, part.int32()?);
                    part.end()?;
                    Ok(PartAsked { name: name.clone(), id, index, offset, epoch_below, max_bytes })
                })?;
                topic.end()?;
                Ok(parts.remove(0))
            })
            .unwrap();
        Some(FetchAsked { max_wait: Duration::from_millis(max_wait as u64), parts })
    }

    /// One part of the response for each of the request.
    pub(super) fn response(&self, asked: &Asked, parts: &[Part]) -> Writer {
        let mut body = asked.writer();
        body.int32(0);
        body.int16(0);
        body.int32(0);
        body.array(parts.len()).unwrap();
        for (asked, part) in self.parts.iter().zip(parts) {
            match &asked.name {
                Some(name) => body.string(name).unwrap(),
                None => body.topic_id(asked.id),
            }
            body.array(1).unwrap();
            body.int32(asked.index);
            body.int16(part.code);
            body.int64(part.end);
            body.int64(part.end);
            body.int64(0);
            body.array(part.aborted.len()).unwrap();
            for (producer, first) in &part.aborted {
                body.int64(*producer);
                body.int64(*first);
                body.end();
            }
            body.int32(-1);
            body.byte_array(&part.records).unwrap();
            match part.is_cut {
                // One field, the number 0, with the epoch and the offset up to which the log is the same.
                true => body.bytes.extend([&[1, 0, 13][..], &[0; 12], &[0]].concat()),
                false => body.end(),
            }
            body.end();
        }
        body.end();
        body
    }
}
