//! A host made of nothing: a network namespace without a name, with one TUN device for its network.

use std::{
    fs::{self, File},
    io,
    net::Ipv4Addr,
    os::fd::{AsFd as _, OwnedFd},
    process::Command,
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, anyhow};

use crate::sys::{self, Interfaces};

const DEVICE: &str = "tun0";
/// The mask of all addresses of the emulated network: on both hosts, all are directly on the device.
const MASK: Ipv4Addr = Ipv4Addr::new(255, 0, 0, 0);
/// Of Ethernet, and so of most paths.
const MTU_BYTES: i32 = 1500;
/// What may wait for the emulator to come round: a second of full packets at 100 Mbit/s. A device with less drops packets of its own.
const DEVICE_QUEUE_PACKETS: i32 = 10_000;

/// Settings of a namespace, and why fair measurements need them.
const SETTINGS: [(&str, &str); 4] = [
    // Nothing here speaks IPv6; its neighbour discovery and router solicitations would be packets that no subject sent.
    ("net/ipv6/conf/all/disable_ipv6", "1"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    // TCP otherwise keeps the slow-start threshold and round-trip time of closed connections for the next one to the same address:
    // a measurement would depend on those before it.
    ("net/ipv4/tcp_no_metrics_save", "1"),
    // Linux answers each address with one ICMP message a second. Here one address stands for many clients.
    ("net/ipv4/icmp_ratelimit", "0"),
];

/// A host. It is there for as long as this, and as what runs in it.
pub struct Host {
    namespace: Arc<OwnedFd>,
    interfaces: Interfaces,
}

impl Host {
    /// A new host with `addresses`, and the device that its packets come from and go to.
    pub(super) fn new(addresses: Vec<Ipv4Addr>) -> anyhow::Result<(Self, File)> {
        // A thread of its own, since this one stays where it is.
        let made = spawn(move || {
            let namespace = sys::new_namespace().context("cannot make a network namespace (needs CAP_SYS_ADMIN)")?;
            for (name, value) in SETTINGS {
                write_setting(name, value).or_else(|error| match error.kind() {
                    // A kernel without IPv6.
                    io::ErrorKind::NotFound => Ok(()),
                    _ => Err(error).with_context(|| format!("cannot set /proc/sys/{name} to {value}")),
                })?;
            }
            let device =
                sys::open_tun(DEVICE).context("cannot make a TUN device (needs /dev/net/tun, CAP_NET_ADMIN)")?;
            let interfaces = Interfaces::here().context("cannot open a socket")?;
            set_up(&interfaces, &addresses).context("cannot set a TUN device up")?;
            Ok((Self { namespace: Arc::new(namespace), interfaces }, device))
        });
        joined(made?)?
    }

    /// Has `command` run on this host, and killed when the thread that starts it ends. So it is to be started from a thread that stays:
    /// the main one or a worker of tokio's, not one of `spawn_blocking`.
    pub fn enter(&self, command: &mut Command) {
        sys::start_in_namespace(command, Arc::clone(&self.namespace));
    }

    /// Runs `f` in a thread on this host, to its end. Sockets that it opens stay on this host wherever they go.
    pub fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
        joined(self.spawn(f)?)?
    }

    /// Starts `f` in a thread on this host. Sockets that it opens, and threads that it starts, are on this host too.
    ///
    /// # Errors
    ///
    /// If there can be no thread. If it cannot enter the host, `f` is not run, and the thread returns that.
    pub fn spawn<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<JoinHandle<anyhow::Result<T>>> {
        let namespace = Arc::clone(&self.namespace);
        spawn(move || {
            sys::enter_namespace(namespace.as_fd()).context("cannot enter the host's network namespace")?;
            Ok(f())
        })
    }

    /// Sets what TCP connections use from now on.
    pub(super) fn set_congestion_control(&self, name: &str) -> anyhow::Result<()> {
        const SETTING: &str = "net/ipv4/tcp_congestion_control";
        let value = name.to_owned();
        let result = self.run(move || write_setting(SETTING, &value))?;
        result.with_context(|| {
            format!(
                "TCP cannot use {name}: is it there (`modprobe tcp_{name}`), and is it listed in \
                 /proc/sys/net/ipv4/tcp_allowed_congestion_control?"
            )
        })
    }

    /// Gives the host `address`; the one it had is gone.
    pub(super) fn move_to(&self, address: Ipv4Addr) -> io::Result<()> {
        self.interfaces.set_address(DEVICE, address)?;
        self.interfaces.set_netmask(DEVICE, MASK)
    }

    #[cfg(test)]
    pub(super) fn namespace_inode(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt as _;
        Ok(File::from(self.namespace.try_clone()?).metadata()?.ino())
    }
}

fn set_up(interfaces: &Interfaces, addresses: &[Ipv4Addr]) -> io::Result<()> {
    interfaces.set_up("lo")?;
    interfaces.set_mtu(DEVICE, MTU_BYTES)?;
    interfaces.set_queue_length(DEVICE, DEVICE_QUEUE_PACKETS)?;
    for (number, &address) in addresses.iter().enumerate() {
        if number == 0 {
            interfaces.set_address(DEVICE, address)?;
            interfaces.set_netmask(DEVICE, MASK)?;
        } else {
            interfaces.set_address(&format!("{DEVICE}:{number}"), address)?;
        }
    }
    interfaces.set_up(DEVICE)
}

/// Of the calling thread's namespace.
pub(super) fn write_setting(name: &str, value: &str) -> io::Result<()> {
    fs::write(format!("/proc/sys/{name}"), value)
}

fn spawn<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<JoinHandle<T>> {
    thread::Builder::new().name("titan-host".into()).spawn(f).context("cannot start a thread")
}

fn joined<T>(thread: JoinHandle<T>) -> anyhow::Result<T> {
    thread.join().map_err(|_| anyhow!("a thread on an emulated host panicked"))
}
