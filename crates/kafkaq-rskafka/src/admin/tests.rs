//! What no server does when it is asked to: it is not the controller, is too old, forbids.

use super::wire::{Reader, Writer};
use crate::{RsKafka, failure::Failure, link::Link, topics::learn};
use kafkaq_core::{ErrorKind, TopicInfo, TopicSpec};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const CREATE_TOPICS: i16 = 19;
const DESCRIBE_CONFIGS: i16 = 32;
const METADATA: i16 = 3;

/// Answers each kind of request that it knows.
async fn server(knows: &'static [i16], answer: impl Fn(i16) -> Writer + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move { serve(client, knows, &*answer).await });
        }
    });
    address
}

/// Until the client goes away.
async fn serve(mut client: TcpStream, knows: &[i16], answer: &(impl Fn(i16) -> Writer + Sync)) {
    while let Ok(len) = client.read_i32().await {
        let mut request = vec![0; len as usize];
        client.read_exact(&mut request).await.unwrap();
        let api = Reader(request.into()).int16().unwrap();
        let body = if api == 18 { versions(knows) } else { answer(api) };
        let mut frame = Writer::default();
        frame.int32(body.0.len() as i32 + 4);
        frame.int32(0);
        frame.0.extend(body.0);
        client.write_all(&frame.0).await.unwrap();
    }
}

fn versions(knows: &[i16]) -> Writer {
    let mut body = Writer::default();
    body.int16(0);
    body.count(knows.len()).unwrap();
    for api in knows {
        body.int16(*api);
        body.int16(0);
        body.int16(9);
    }
    body
}

/// How the making of the topic `t` went.
fn created(code: i16) -> Writer {
    let mut body = Writer::default();
    body.int32(0);
    body.count(1).unwrap();
    body.string("t").unwrap();
    body.int16(code);
    body.string("because").unwrap();
    body
}

/// A cluster of the node 7, which is the controller.
fn metadata(controller: &str) -> Writer {
    let (host, port) = controller.rsplit_once(':').unwrap();
    let mut body = Writer::default();
    body.count(1).unwrap();
    body.int32(7);
    body.string(host).unwrap();
    body.int32(port.parse().unwrap());
    body.int16(-1);
    body.int32(7);
    body.count(0).unwrap();
    body
}

fn link(addresses: &str) -> Link {
    RsKafka::builder(addresses).request_timeout(Duration::from_secs(5)).build().unwrap().link
}

async fn create(link: &Link) -> Result<bool, Failure> {
    let spec = TopicSpec::new("t");
    link.administer(link.patient(), |admin| admin.create(&spec, Duration::from_secs(1))).await
}

#[tokio::test]
async fn a_node_that_is_not_the_controller_names_the_one_that_is() {
    let controller = server(&[CREATE_TOPICS], |_| created(0)).await;
    let other = server(&[CREATE_TOPICS, METADATA], move |api| match api {
        METADATA => metadata(&controller),
        _ => created(41),
    })
    .await;
    assert!(create(&link(&other)).await.unwrap());
}

#[tokio::test]
async fn a_topic_that_somebody_else_made_meanwhile_is_as_good() {
    let server = server(&[CREATE_TOPICS], |_| created(36)).await;
    assert!(!create(&link(&server)).await.unwrap());
}

#[tokio::test]
async fn an_address_where_nobody_listens_leaves_the_others() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let server = server(&[CREATE_TOPICS], |_| created(0)).await;
    assert!(create(&link(&format!("{nobody},{server}"))).await.unwrap());
}

#[tokio::test]
async fn who_may_not_make_a_topic_is_told_what_to_ask_for_and_what_the_server_said() {
    let server = server(&[CREATE_TOPICS], |_| created(29)).await;
    let link = link(&server);
    let e = link.error(crate::Op::ENSURE, None, create(&link).await.unwrap_err());
    assert_eq!(e.kind(), ErrorKind::Denied);
    assert!(
        e.to_string().contains("because") && e.advice().unwrap().contains("Create on the topic t"),
        "{e}"
    );
}

#[tokio::test]
async fn a_server_that_is_too_old_to_make_topics_so_says_it() {
    let server = server(&[METADATA], |_| unreachable!()).await;
    let failure = create(&link(&server)).await.unwrap_err();
    assert_eq!((failure.kind, failure.sent), (ErrorKind::Unsupported, false));
}

#[tokio::test]
async fn settings_that_cannot_be_read_stay_open_and_fail_nothing() {
    let denied = |_| {
        let mut body = Writer::default();
        body.int32(0);
        body.count(1).unwrap();
        body.int16(29);
        body.int16(-1);
        body.int8(2);
        body.string("t").unwrap();
        body.count(0).unwrap();
        body
    };
    let forbids = server(&[DESCRIBE_CONFIGS], denied).await;
    let is_old = server(&[METADATA], |_| unreachable!()).await;
    for server in [forbids, is_old] {
        let link = link(&server);
        let mut info = TopicInfo::new("t", 1);
        learn(&link, &mut info, link.patient()).await.unwrap();
        assert_eq!(info, TopicInfo::new("t", 1));
    }
}

#[tokio::test]
async fn an_answer_that_is_not_one_is_corrupt_and_one_that_is_too_large_is_refused() {
    let nonsense = server(&[CREATE_TOPICS], |_| Writer::default()).await;
    assert_eq!(create(&link(&nonsense)).await.unwrap_err().kind, ErrorKind::Corrupt);
    let large = server(&[CREATE_TOPICS], |_| Writer(vec![0; 3 << 20])).await;
    let modest = RsKafka::builder(large).max_message_bytes(2 << 20).build().unwrap().link;
    assert_eq!(create(&modest).await.unwrap_err().kind, ErrorKind::TooLarge);
}
