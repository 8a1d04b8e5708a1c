//! HTTP/2 and TLS by the byte.

use std::{io, sync::Arc};

use rustls::ClientConnection;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::{Port, support::tls};
use titan_transport::tls::https_client_config;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// SETTINGS_INITIAL_WINDOW_SIZE.
const INITIAL_WINDOW: u16 = 4;

/// RFC 9113 §4.1.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

pub(crate) fn window_of(bytes: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&INITIAL_WINDOW.to_be_bytes()[..], &bytes.to_be_bytes()].concat())
}

/// A request's header block, without compression: RFC 7541 §6.2.2.
pub(crate) fn request(method: u8, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    let mut block = vec![method, 0x86, 0x04];
    block.extend(text(path));
    block.push(0x01);
    block.extend(text("test"));
    for (name, value) in more {
        block.push(0);
        block.extend([text(name), text(value)].concat());
    }
    block
}

/// `:method` in the static table: RFC 7541, appendix A.
pub(crate) const GET: u8 = 0x82;
pub(crate) const POST: u8 = 0x83;

pub(crate) fn grpc(path: &str) -> Vec<u8> {
    request(POST, path, &[("content-type", "application/grpc"), ("te", "trailers")])
}

/// A connection that has said hello.
pub(crate) struct Http2 {
    pub(crate) read: OwnedReadHalf,
    pub(crate) write: OwnedWriteHalf,
}

impl Http2 {
    /// Begins with this SETTINGS frame.
    pub(crate) async fn new(port: &Port, settings: &[u8]) -> Self {
        let (read, mut write) = port.connect().await.into_split();
        write.write_all(&[PREFACE, settings].concat()).await.unwrap();
        Self { read, write }
    }

    /// The next frame. None when the connection has ended.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let (kind, flags, stream, payload) = read_frame(&mut self.read).await?;
        // A peer that is to be noticed by nothing else answers.
        if (kind, flags & ACK) == (PING, 0) {
            let _ = self.write.write_all(&frame(PING, ACK, 0, &payload)).await;
        }
        if (kind, flags & ACK) == (SETTINGS, 0) {
            let _ = self.write.write_all(&frame(SETTINGS, ACK, 0, &[])).await;
        }
        Some((kind, flags, stream, payload))
    }
}

/// Type, flags, stream, payload.
pub(crate) type Frame = (u8, u8, u32, Vec<u8>);

pub(crate) async fn read_frame(read: &mut OwnedReadHalf) -> Option<Frame> {
    let mut header = [0; 9];
    read.read_exact(&mut header).await.ok()?;
    let [a, b, c, kind, flags, stream @ ..] = header;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    read.read_exact(&mut payload).await.ok()?;
    Some((kind, flags, u32::from_be_bytes(stream), payload))
}

/// The first bytes that a TLS client sends.
pub(crate) fn client_hello() -> Vec<u8> {
    let config = https_client_config(Some(tls::client()), true).unwrap();
    let name = ServerName::try_from(tls::SERVER_NAME).unwrap();
    let mut hello = vec![];
    ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut hello).unwrap();
    hello
}

/// Reads until the end, whatever comes and however it ends.
pub(crate) async fn drain(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = vec![];
    let _: io::Result<usize> = stream.read_to_end(&mut all).await;
    all
}
