//! What the kernel offers for hosts made of nothing: all the unsafe code of the emulated network.

use std::{
    fs::{self, File, OpenOptions},
    io, mem,
    net::{Ipv4Addr, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    },
    process::Command,
    ptr,
    sync::Arc,
    time::Duration,
};

/// Of linux/sockios.h: the time at which the packet read last reached the host.
const SIOCGSTAMPNS: u32 = 0x8907;

/// Moves the calling thread into a new network namespace, and returns a handle of it.
pub(super) fn new_namespace() -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers; what it changes is the calling thread's.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

/// Makes the calling process root of a new user namespace, in which its user and group are the only ones.
///
/// # Errors
///
/// Also where it has more than one thread.
pub(super) fn become_root_of_own_namespace() -> io::Result<()> {
    // SAFETY: they have no arguments and cannot fail.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    // SAFETY: takes no pointers; what it changes is the calling process's.
    check(unsafe { libc::unshare(libc::CLONE_NEWUSER) })?;
    // user_namespaces(7): who may not set groups may map its own, once each.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1"))
}

/// Moves the calling thread into `namespace`.
pub(super) fn enter_namespace(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes an open descriptor and no pointers; what it changes is the calling thread's.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Has `command` start in `namespace`, and die with the thread that starts it.
pub(super) fn start_in_namespace(command: &mut Command, namespace: Arc<OwnedFd>) {
    let parent = std::process::id();
    let before_exec = move || {
        enter_namespace(namespace.as_fd())?;
        // SAFETY: takes no pointers; what it changes is the calling process's.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
        // SAFETY: has no arguments and cannot fail.
        let parent_now = unsafe { libc::getppid() };
        // A parent that ended before the line above sends no signal any more.
        if u32::try_from(parent_now) == Ok(parent) { Ok(()) } else { Err(io::ErrorKind::NotConnected.into()) }
    };
    // SAFETY: between fork and exec it makes three system calls and neither allocates nor locks.
    unsafe { command.pre_exec(before_exec) };
}

/// A TUN device in the calling thread's namespace, which lives as long as the file: one IP packet for each read and write. Neither waits.
pub(super) fn open_tun(name: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_flags = flags(libc::IFF_TUN | libc::IFF_NO_PI);
    // SAFETY: the kernel reads and writes one ifreq, which `request` is.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(file)
}

/// Sets up interfaces of the namespace that `control` was opened in.
pub(super) struct Interfaces {
    control: UdpSocket,
}

impl Interfaces {
    /// Of the calling thread's namespace.
    pub(super) fn here() -> io::Result<Self> {
        Ok(Self { control: UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))? })
    }

    /// Gives `name` an address, in place of the one it had; `name:label` is an address beside others.
    pub(super) fn set_address(&self, name: &str, address: Ipv4Addr) -> io::Result<()> {
        let mut request = interface_request(name)?;
        request.ifr_ifru.ifru_addr = socket_address(address);
        self.ask(libc::SIOCSIFADDR, request)
    }

    /// Says which addresses are reached directly over `name`.
    pub(super) fn set_netmask(&self, name: &str, mask: Ipv4Addr) -> io::Result<()> {
        let mut request = interface_request(name)?;
        request.ifr_ifru.ifru_netmask = socket_address(mask);
        self.ask(libc::SIOCSIFNETMASK, request)
    }

    /// Sets the longest packet of `name`.
    pub(super) fn set_mtu(&self, name: &str, bytes: i32) -> io::Result<()> {
        let mut request = interface_request(name)?;
        request.ifr_ifru.ifru_mtu = bytes;
        self.ask(libc::SIOCSIFMTU, request)
    }

    /// Sets how many packets may wait in `name` to be read.
    pub(super) fn set_queue_length(&self, name: &str, packets: i32) -> io::Result<()> {
        let mut request = interface_request(name)?;
        // `ifr_qlen` of C is the same int of the union.
        request.ifr_ifru.ifru_metric = packets;
        self.ask(libc::SIOCSIFTXQLEN, request)
    }

    /// Lets packets through `name`.
    pub(super) fn set_up(&self, name: &str) -> io::Result<()> {
        let mut request = interface_request(name)?;
        request.ifr_ifru.ifru_flags = flags(libc::IFF_UP | libc::IFF_RUNNING);
        self.ask(libc::SIOCSIFFLAGS, request)
    }

    fn ask(&self, what: libc::c_ulong, mut request: libc::ifreq) -> io::Result<()> {
        // The C libraries disagree on the type of the second argument.
        #[allow(clippy::unnecessary_cast, reason = "c_int with musl")]
        // SAFETY: the kernel reads and writes one ifreq, which `request` is.
        check(unsafe { libc::ioctl(self.control.as_raw_fd(), what as libc::Ioctl, &raw mut request) }).map(drop)
    }
}

/// Waits until one of `files` can be read, at most for `timeout`; says which can, and fails once one is gone.
pub(super) fn wait_readable<const N: usize>(
    files: [BorrowedFd<'_>; N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut wanted = files.map(|file| libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    let count = libc::nfds_t::try_from(N).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: `wanted` are `count` pollfds to read and write; the timeout is null or a timespec; no signal mask is given.
    let result = check(unsafe { libc::ppoll(wanted.as_mut_ptr(), count, timeout, ptr::null()) });
    match result {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok([false; N]),
        other => other?,
    };
    if wanted.iter().any(|file| file.revents & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0) {
        return Err(io::ErrorKind::NotConnected.into());
    }
    Ok(wanted.map(|file| file.revents & libc::POLLIN != 0))
}

/// Has the calling thread woken as soon as it asked to be, before those of ordinary programs. What may not be set stays as it is.
pub(super) fn be_punctual() {
    /// The lowest of the real-time priorities comes before all ordinary threads.
    const PRIORITY: libc::c_int = 1;
    // By default the kernel may be 50 us late so as to wake several threads at once; 1 ns is the least that can be asked for.
    // SAFETY: takes no pointers; what it changes is the calling thread's.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_usize) };
    // SAFETY: all bytes of a sched_param may be zero.
    let mut parameter: libc::sched_param = unsafe { mem::zeroed() };
    parameter.sched_priority = PRIORITY;
    // SAFETY: the kernel reads one sched_param; what it changes is the calling thread's.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameter) };
}

/// When the packet last read from `socket` reached the host, since the Unix epoch. The first call fails, and has the kernel note
/// it from then on.
pub(super) fn receive_time(socket: impl AsFd) -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let socket = socket.as_fd().as_raw_fd();
    #[allow(clippy::unnecessary_cast, reason = "c_int with musl")]
    // SAFETY: the kernel writes one timespec.
    check(unsafe { libc::ioctl(socket, SIOCGSTAMPNS as libc::Ioctl, &raw mut time) })?;
    let seconds = u64::try_from(time.tv_sec).map_err(|_| io::ErrorKind::InvalidData)?;
    let nanos = u32::try_from(time.tv_nsec).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(Duration::new(seconds, nanos))
}

/// Sets how much may wait in `socket` to be read, beyond what the machine allows ordinary programs.
pub(super) fn force_receive_buffer(socket: impl AsFd, bytes: libc::c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&bytes)).map_err(|_| io::ErrorKind::InvalidInput)?;
    let (socket, value) = (socket.as_fd().as_raw_fd(), (&raw const bytes).cast());
    // SAFETY: the kernel reads one int, `bytes`, of the length given.
    check(unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, value, length) }).map(drop)
}

fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all bytes of an ifreq may be zero.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // The last byte stays zero: it ends the name.
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is too long for an interface")));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: all bytes of a sockaddr may be zero.
    let mut socket_address: libc::sockaddr = unsafe { mem::zeroed() };
    socket_address.sa_family = flags(libc::AF_INET).cast_unsigned();
    // A sockaddr_in: two bytes of port, then the address.
    for (to, from) in socket_address.sa_data.iter_mut().skip(2).zip(address.octets()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    socket_address
}

/// Flags that the kernel takes as a short, as they are in C.
#[allow(clippy::cast_possible_truncation, reason = "the constants used are below 2^15")]
fn flags(flags: libc::c_int) -> libc::c_short {
    flags as libc::c_short
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
