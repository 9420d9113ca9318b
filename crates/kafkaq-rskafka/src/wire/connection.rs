//! A connection: TCP or TLS, one request at a time.

use super::{
    format::{Reader, Writer},
    sasl,
};
use crate::{failure::Failure, link::Settings};
use bytes::BytesMut;
use futures_util::FutureExt;
use kafkaq_core::ErrorKind;
use std::{collections::HashMap, io, ops::RangeInclusive};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

/// One version of one kind of request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Api {
    pub(crate) key: i16,
    pub(crate) version: i16,
    pub(crate) name: &'static str,
    /// See [`Writer`].
    pub(crate) flexible: bool,
}

impl Api {
    pub(crate) const fn new(key: i16, version: i16, name: &'static str) -> Self {
        Api { key, version, name, flexible: false }
    }

    pub(crate) const fn flexible(key: i16, version: i16, name: &'static str) -> Self {
        Api { key, version, name, flexible: true }
    }
}

/// A kind of request, and how its response is decoded.
pub(crate) trait Request: Sync {
    type Response: Send;
    /// Whether it is a write: then it may have had an effect if it fails after it was sent.
    const CHANGES: bool = false;

    /// The versions in which it can be sent, best first.
    fn versions(&self) -> &'static [Api];
    fn encode(&self, api: &Api, body: &mut Writer) -> Result<(), Failure>;
    fn decode(&self, api: &Api, body: &mut Reader) -> Result<Self::Response, Failure>;
}

const API_VERSIONS: Api = Api::new(18, 0, "ApiVersions");

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

pub(crate) struct Connection {
    stream: Box<dyn Stream>,
    client_id: String,
    max_response: usize,
    /// The versions that the server supports, per kind of request.
    versions: HashMap<i16, RangeInclusive<i16>>,
    correlation: i32,
}

impl Connection {
    /// Connects and authenticates.
    pub(super) async fn open(settings: &Settings, address: &str) -> Result<Self, Failure> {
        let stream = connect(settings, address).await.map_err(Failure::io)?;
        let (client_id, max_response) = (settings.client_id.clone(), settings.max_message_bytes);
        let versions = HashMap::new();
        let mut connection = Connection { stream, client_id, max_response, versions, correlation: 0 };
        let mut response = connection.exchange(&API_VERSIONS, Writer::default()).await?;
        Failure::of_code(response.int16()?, || "asked for its versions".into())?;
        let entry = |entry: &mut Reader| Ok((entry.int16()?, entry.int16()?..=entry.int16()?));
        connection.versions = response.array(entry)?.into_iter().collect();
        if let Some(sasl) = &settings.sasl {
            sasl::sign_in(&mut connection, sasl).await?;
        }
        Ok(connection)
    }

    /// Whether the server has not hung up while the connection was idle.
    pub(super) fn is_alive(&mut self) -> bool {
        // There is nothing to read: no response is outstanding.
        self.stream.read(&mut [0]).now_or_never().is_none()
    }

    pub(super) async fn send<R: Request>(&mut self, request: &R) -> Result<R::Response, Failure> {
        let api = self.version_of(request.versions())?;
        let mut body = Writer::new(api.flexible);
        request.encode(api, &mut body)?;
        let mut response = self.exchange(api, body).await?;
        // The request was executed, even if its response can't be read.
        request.decode(api, &mut response)
    }

    pub(super) fn version_of(&self, versions: &'static [Api]) -> Result<&'static Api, Failure> {
        let known =
            |api: &&Api| self.versions.get(&api.key).is_some_and(|range| range.contains(&api.version));
        versions.iter().find(known).ok_or_else(|| {
            let wanted: Vec<_> =
                versions.iter().map(|api| format!("{} in version {}", api.name, api.version)).collect();
            let advice =
                format!("The server doesn't support {}: use Kafka 2.4 or later", wanted.join(" nor "));
            Failure::refused(ErrorKind::Unsupported, advice)
        })
    }

    pub(super) async fn exchange(&mut self, api: &Api, body: Writer) -> Result<Reader, Failure> {
        self.correlation = self.correlation.wrapping_add(1);
        // A place for the size of what follows.
        let mut frame = Writer::default();
        frame.int32(0);
        frame.int16(api.key);
        frame.int16(api.version);
        frame.int32(self.correlation);
        frame.string(&self.client_id)?;
        if api.flexible {
            // No tagged fields.
            frame.int8(0);
        }
        frame.bytes.extend(body.bytes);
        let size = i32::try_from(frame.bytes.len() - 4).map_err(Failure::unreadable)?;
        frame.bytes[..4].copy_from_slice(&size.to_be_bytes());
        // In one write: a second packet would wait for the acknowledgement of the first.
        self.stream.write_all(&frame.bytes).await.map_err(Failure::io)?;
        self.stream.flush().await.map_err(Failure::io)?;
        let bytes = self.frame().await?;
        let mut header = Reader::new(bytes, api.flexible);
        if header.int32()? != self.correlation {
            return Err(Failure::protocol_mismatch());
        }
        header.end()?;
        Ok(header)
    }

    async fn frame(&mut self) -> Result<bytes::Bytes, Failure> {
        let size = self.stream.read_i32().await.map_err(Failure::io)?;
        let size = usize::try_from(size).ok().filter(|size| *size <= self.max_response);
        let size = size.ok_or_else(Failure::oversized)?;
        let mut bytes = BytesMut::with_capacity(size);
        let mut rest = (&mut self.stream).take(size as u64);
        while bytes.len() < size {
            if rest.read_buf(&mut bytes).await.map_err(Failure::io)? == 0 {
                return Err(Failure::io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(bytes.freeze())
    }
}

async fn connect(settings: &Settings, address: &str) -> io::Result<Box<dyn Stream>> {
    let tcp = TcpStream::connect(address).await?;
    // Otherwise a request of several packets waits for the acknowledgement of the first.
    tcp.set_nodelay(true)?;
    #[cfg(feature = "tls")]
    if let Some(tls) = &settings.tls {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        // An IPv6 address has brackets, but a TLS server name has none.
        let host = host.trim_matches(['[', ']']).to_owned();
        let name = rustls::pki_types::ServerName::try_from(host).map_err(io::Error::other)?;
        return Ok(Box::new(tokio_rustls::TlsConnector::from(tls.clone()).connect(name, tcp).await?));
    }
    #[cfg(not(feature = "tls"))]
    let _ = settings;
    Ok(Box::new(tcp))
}
