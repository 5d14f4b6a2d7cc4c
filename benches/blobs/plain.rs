//! What moving a file over TLS costs where nothing is looked at.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig, version};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{MIB, Taken, process};

pub(crate) async fn copy(from: &Path, to: &Path) -> Result<Taken> {
    let mut provider = default_provider();
    provider.cipher_suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
    let provider = Arc::new(provider);
    let rcgen::CertifiedKey { cert, key_pair } = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = PrivateKeyDer::try_from(key_pair.serialize_der()).map_err(anyhow::Error::msg)?;
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)?;
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone())?;
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let (start, cpu) = (Instant::now(), cpu_seconds()?);
    let source = from.to_owned();
    let mut sending = JoinSet::new();
    sending.spawn(async move {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let mut stream = TlsAcceptor::from(Arc::new(server)).accept(socket).await?;
        let (file, mut buffer) = (File::open(source)?, vec![0; MIB]);
        loop {
            let read = (&file).read(&mut buffer)?;
            if read == 0 {
                return stream.shutdown().await;
            }
            stream.write_all(&buffer[..read]).await?;
        }
    });
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let name = ServerName::try_from("localhost")?;
    let mut stream = TlsConnector::from(Arc::new(client)).connect(name, socket).await?;
    let (mut file, mut buffer) = (File::create(to)?, vec![0; MIB]);
    loop {
        let mut filled = 0;
        while filled < MIB {
            match stream.read(&mut buffer[filled..]).await? {
                0 => break,
                read => filled += read,
            }
        }
        file.write_all(&buffer[..filled])?;
        if filled < MIB {
            break;
        }
    }
    let there = start.elapsed();
    file.sync_data()?;
    let taken = Taken { there, lasting: start.elapsed(), cpu_seconds: cpu_seconds()? - cpu };
    sending.join_next().await.context("somebody sends")???;
    fs::remove_file(to)?;
    Ok(taken)
}

fn cpu_seconds() -> Result<f64> {
    process::cpu_seconds(&[std::process::id()])
}
