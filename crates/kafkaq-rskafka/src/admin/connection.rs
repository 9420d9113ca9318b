//! A connection of our own: TCP or TLS, one request at a time.

use super::{
    sasl,
    wire::{Reader, Writer},
};
use crate::{failure::Failure, link::Settings};
use kafkaq_core::ErrorKind;
use std::{collections::HashMap, io, ops::RangeInclusive};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

/// A kind of request, in the one version of it that is used here.
pub(super) struct Api {
    pub(super) key: i16,
    pub(super) version: i16,
    pub(super) name: &'static str,
}

const API_VERSIONS: Api = Api { key: 18, version: 0, name: "ApiVersions" };

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

pub(super) struct Connection {
    stream: Box<dyn Stream>,
    client_id: String,
    max_answer: usize,
    /// What the server knows of each kind of request.
    versions: HashMap<i16, RangeInclusive<i16>>,
}

impl Connection {
    /// Connects and signs in, with the settings that the client library has.
    pub(super) async fn open(settings: &Settings, address: &str) -> Result<Self, Failure> {
        let stream = connect(settings, address).await.map_err(Failure::io)?;
        let (client_id, max_answer) = (settings.client_id.clone(), settings.max_message_bytes);
        let mut connection = Connection { stream, client_id, max_answer, versions: HashMap::new() };
        let mut answer = connection.exchange(&API_VERSIONS, Writer::default()).await?;
        Failure::of_code(answer.int16()?, || "asked for its versions".into())?;
        let entry = |entry: &mut Reader| Ok((entry.int16()?, entry.int16()?..=entry.int16()?));
        connection.versions = answer.list(entry)?.into_iter().collect();
        if let Some(sasl) = &settings.sasl {
            sasl::sign_in(&mut connection, sasl).await?;
        }
        Ok(connection)
    }

    pub(super) async fn ask(&mut self, api: &Api, body: Writer) -> Result<Reader, Failure> {
        let known = self.versions.get(&api.key).is_some_and(|versions| versions.contains(&api.version));
        match known {
            true => self.exchange(api, body).await,
            false => {
                let Api { name, version, .. } = api;
                let advice =
                    format!("The server does not know {name} in version {version}: use Kafka 2.4 or later");
                Err(Failure::refused(ErrorKind::Unsupported, advice))
            }
        }
    }

    async fn exchange(&mut self, api: &Api, body: Writer) -> Result<Reader, Failure> {
        let mut request = Writer::default();
        request.int16(api.key);
        request.int16(api.version);
        // There is only one request to answer at any time.
        request.int32(0);
        request.string(&self.client_id)?;
        request.0.extend(body.0);
        let mut frame = Writer::default();
        frame.bytes(&request.0)?;
        self.send(&frame.0).await.map_err(Failure::io)?;
        let len = self.stream.read_i32().await.map_err(Failure::io)?;
        let len = usize::try_from(len).ok().filter(|len| *len <= self.max_answer);
        let mut answer = vec![0; len.ok_or_else(Failure::oversized)?];
        self.stream.read_exact(&mut answer).await.map_err(Failure::io)?;
        let mut answer = Reader(answer.into());
        let _which = answer.int32()?;
        Ok(answer)
    }

    async fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        // In one write: the second packet of two would wait for the acknowledgement of the first.
        self.stream.write_all(frame).await?;
        self.stream.flush().await
    }
}

async fn connect(settings: &Settings, address: &str) -> io::Result<Box<dyn Stream>> {
    let tcp = TcpStream::connect(address).await?;
    #[cfg(feature = "tls")]
    if let Some(tls) = &settings.tls {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        // IPv6 has brackets in an address and none as a name.
        let host = host.trim_matches(['[', ']']).to_owned();
        let name = rustls::pki_types::ServerName::try_from(host).map_err(io::Error::other)?;
        return Ok(Box::new(tokio_rustls::TlsConnector::from(tls.clone()).connect(name, tcp).await?));
    }
    #[cfg(not(feature = "tls"))]
    let _ = settings;
    Ok(Box::new(tcp))
}
