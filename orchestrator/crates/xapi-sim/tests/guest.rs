//! Guests in a real QEMU. They boot a sector of our own instead of a kernel, so that nothing has to be built
//! first; the XenStore port with a kernel behind it is tested with the appliance.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;
use xapi_sim::Surface;
use xapi_sim::guest::{
    Engine, Firmware, Guest, GuestConfig, GuestDisk, GuestError, GuestEvent, GuestNic, start,
};

/// How long QEMU may take for what takes it two seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A disk that says `text` on the first serial port, then runs `end`. Firmware boots no disk smaller than a cylinder.
fn boot_disk(text: &str, end: &[u8]) -> Vec<u8> {
    #[rustfmt::skip]
    let say = [
        0x31, 0xc0,             //        xor ax, ax
        0x8e, 0xd8,             //        mov ds, ax
        0xfc,                   //        cld
        0xbe, 0x40, 0x7c,       //        mov si, 0x7c40
        0xba, 0xf8, 0x03,       //        mov dx, 0x3f8
        0xac,                   // next:  lodsb
        0x84, 0xc0,             //        test al, al
        0x74, 0x03,             //        jz done
        0xee,                   //        out dx, al
        0xeb, 0xf8,             //        jmp next
    ];
    let mut sector = vec![0; 1 << 20];
    sector[..say.len()].copy_from_slice(&say);
    sector[say.len()..say.len() + end.len()].copy_from_slice(end);
    sector[0x40..0x40 + text.len()].copy_from_slice(text.as_bytes());
    sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// Powers the machine off through the ACPI register of this machine type: mov dx, 0x604; mov ax, 0x2000; out dx, ax;
/// hlt.
const POWER_OFF: [u8; 8] = [0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4];
/// Pulls the reset line through the keyboard controller: mov al, 0xfe; out 0x64, al; hlt.
const RESET: [u8; 5] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4];
/// Sleeps for ever: hlt; jmp to it.
const SLEEP: [u8; 3] = [0xf4, 0xeb, 0xfd];

struct Lab {
    directory: TempDir,
}

impl Lab {
    /// `None`, with the reason printed, where guests cannot run.
    fn new() -> Option<Lab> {
        let has_named = std::env::var_os("ABD_QEMU").is_some();
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !has_named && !std::env::split_paths(&path).any(|place| place.join("qemu-system-x86_64").is_file())
        {
            println!("skipped: no qemu-system-x86_64 in PATH, and ABD_QEMU is not set");
            return None;
        }
        Some(Lab { directory: TempDir::new().unwrap() })
    }

    fn image(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn guest(&self, name: &str, disks: Vec<GuestDisk>) -> GuestConfig {
        GuestConfig {
            name: name.to_owned(),
            engine: Engine::Qemu,
            memory: 64 << 20,
            vcpus: 1,
            firmware: Firmware::Bios,
            disks,
            nics: vec![GuestNic { device: 0, mac: "02:00:00:00:00:07".to_owned() }],
            xenstore: BTreeMap::from([("vm-data/abd/version".to_owned(), "1".to_owned())]),
            work_dir: self.directory.path().join(name),
            link_up: false,
        }
    }

    fn sleeper(&self, name: &str) -> GuestConfig {
        let image = self.image(&format!("{name}.img"), &boot_disk("up\n", &SLEEP));
        self.guest(name, vec![disk(0, image, true)])
    }
}

fn disk(userdevice: u16, path: PathBuf, bootable: bool) -> GuestDisk {
    GuestDisk { userdevice, path, read_only: false, bootable, surface: Surface::default() }
}

fn channel() -> (mpsc::Sender<GuestEvent>, mpsc::Receiver<GuestEvent>) {
    mpsc::channel(4)
}

/// The description in the one and only event.
async fn end_of(mut events: mpsc::Receiver<GuestEvent>) -> String {
    let event = timeout(PATIENCE, events.recv()).await.expect("the guest ends").unwrap();
    let GuestEvent::Exited { description } = event else { panic!("{event:?}") };
    assert_eq!(events.recv().await, None, "nothing comes after the end");
    description
}

fn is_running(pid: u32) -> bool {
    // A zombie has no command line.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

#[tokio::test]
async fn a_guest_boots_the_lowest_bootable_disk_and_powers_itself_off() {
    let Some(lab) = Lab::new() else { return };
    // Names that would be options, or end one, if they were not passed with care.
    let first = lab.image("first,read-only=on.img", &boot_disk("booted the first\n", &POWER_OFF));
    let second = lab.image("second \"2\".img", &boot_disk("booted the second\n", &POWER_OFF));
    let plain = lab.image("plain.img", &[0; 512]);
    let disks = vec![disk(4, plain, false), disk(1, second, true), disk(0, first, true)];
    let (sender, events) = channel();
    let guest = start(lab.guest("one, two", disks), sender).await.unwrap();
    assert_eq!(end_of(events).await, "the guest powered itself off");
    let console = std::fs::read_to_string(guest.console_log()).unwrap();
    assert!(console.contains("booted the first\n"), "{console}");
    assert!(!console.contains("booted the second\n"), "{console}");
    assert!(!is_running(guest.pid()));
    // The store outlives the guest, commands and kills come too late without harm.
    assert_eq!(guest.xenstore_tree("device/vbd/51776")["device/vbd/51776/virtual-device"], "51776");
    assert!(matches!(guest.pause().await, Err(GuestError::Ended)));
    guest.kill().await;
}

#[tokio::test]
async fn a_guest_that_resets_ends_instead_of_booting_again() {
    let Some(lab) = Lab::new() else { return };
    let image = lab.image("boot.img", &boot_disk("once\n", &RESET));
    let (sender, events) = channel();
    let guest = start(lab.guest("reset", vec![disk(0, image, true)]), sender).await.unwrap();
    assert_eq!(end_of(events).await, "the guest asked for a restart, or its kernel panicked");
    let console = std::fs::read_to_string(guest.console_log()).unwrap();
    assert_eq!(console.matches("once\n").count(), 1, "{console}");
}

#[tokio::test]
async fn a_running_guest_takes_commands_until_it_is_killed() {
    let Some(lab) = Lab::new() else { return };
    let (sender, events) = channel();
    let guest = start(lab.sleeper("sleeper"), sender).await.unwrap();
    for up in [true, false, true] {
        guest.set_link(up).await.unwrap();
    }
    guest.pause().await.unwrap();
    guest.resume().await.unwrap();
    guest.request_shutdown().await;
    assert_eq!(guest.xenstore_tree("control/shutdown")["control/shutdown"], "poweroff");
    guest.replace_tree("vm-data", BTreeMap::from([("vm-data/a".to_owned(), "b".to_owned())])).await;
    let expected = [("vm-data".to_owned(), String::new()), ("vm-data/a".to_owned(), "b".to_owned())];
    assert_eq!(guest.xenstore_tree("vm-data"), BTreeMap::from(expected));
    assert!(is_running(guest.pid()));
    guest.kill().await;
    assert!(!is_running(guest.pid()));
    assert_eq!(end_of(events).await, "QEMU was killed (signal 9)");
}

#[tokio::test]
async fn a_dropped_guest_is_killed() {
    let Some(lab) = Lab::new() else { return };
    let (sender, events) = channel();
    let guest = start(lab.sleeper("dropped"), sender).await.unwrap();
    let pid = guest.pid();
    drop(guest);
    assert_eq!(end_of(events).await, "QEMU was killed (signal 9)");
    assert!(!is_running(pid));
}

#[tokio::test]
async fn read_only_disks_are_shared_and_writable_ones_are_not() {
    let Some(lab) = Lab::new() else { return };
    let source = lab.image("source.img", &[0; 1024]);
    let mut guests: Vec<(Guest, mpsc::Receiver<GuestEvent>)> = Vec::new();
    for name in ["a", "b"] {
        let mut config = lab.sleeper(name);
        let shared = GuestDisk { read_only: true, ..disk(4, source.clone(), false) };
        config.disks.push(shared);
        let (sender, events) = channel();
        guests.push((start(config, sender).await.unwrap(), events));
    }
    let mut thief = lab.sleeper("thief");
    thief.disks.push(disk(4, lab.directory.path().join("a.img"), false));
    let (sender, mut events) = channel();
    let error = start(thief, sender).await.unwrap_err();
    let GuestError::NotStarted { guest, description } = &error else { panic!("{error:?}") };
    assert_eq!(guest, "thief");
    assert!(description.starts_with("QEMU failed with exit code 1: "), "{description}");
    assert_eq!(events.recv().await, None);
}

#[tokio::test]
async fn a_guest_that_cannot_be_is_refused_with_its_name_and_the_reason() {
    let Some(lab) = Lab::new() else { return };
    let odd = lab.image("odd.img", &[0; 700]);
    let good = lab.image("good.img", &[0; 512]);
    let gone = lab.directory.path().join("gone.img");
    let nic = |device, mac: &str| GuestNic { device, mac: mac.to_owned() };
    let sleeper = || lab.sleeper("bad");
    let cases = [
        (GuestConfig { memory: 1 << 20, ..sleeper() }, "1048576 bytes of memory"),
        (GuestConfig { vcpus: 0, ..sleeper() }, "no processor"),
        (
            GuestConfig { disks: vec![disk(0, odd, true)], ..sleeper() },
            "700 bytes is not a number of whole sectors",
        ),
        (GuestConfig { disks: vec![disk(0, gone, true)], ..sleeper() }, "gone.img"),
        (
            GuestConfig { disks: vec![disk(4, good.clone(), true), disk(4, good, true)], ..sleeper() },
            "two disks have userdevice 4",
        ),
        (
            GuestConfig { nics: vec![nic(0, "02:00")], ..sleeper() },
            "\"02:00\" is not a network card's address",
        ),
        (GuestConfig { nics: vec![nic(9, "02:00:00:00:00:01")], ..sleeper() }, "network card 9"),
        (
            GuestConfig { xenstore: BTreeMap::from([("a b".to_owned(), String::new())]), ..sleeper() },
            "EINVAL",
        ),
    ];
    for (config, reason) in cases {
        let error = start(config, channel().0).await.unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        let text = format!("{error}: {source}");
        assert!(text.contains("bad") && text.contains(reason), "{text} lacks {reason:?}");
    }
}

/// Not a test of its own: the process that the next test kills.
#[tokio::test]
#[ignore = "run by a_killed_simulator_takes_its_guests_with_it"]
async fn host_of_a_guest() {
    let Some(directory) = std::env::var_os("GUEST_HOST_DIRECTORY") else { return };
    let image = Path::new(&directory).join("boot.img");
    std::fs::write(&image, boot_disk("up\n", &SLEEP)).unwrap();
    let config = GuestConfig {
        name: "orphan".to_owned(),
        engine: Engine::Qemu,
        memory: 64 << 20,
        vcpus: 1,
        firmware: Firmware::Bios,
        disks: vec![disk(0, image, true)],
        nics: Vec::new(),
        xenstore: BTreeMap::new(),
        work_dir: PathBuf::from(directory),
        link_up: true,
    };
    let (sender, mut events) = channel();
    let guest = start(config, sender).await.unwrap();
    println!("\nguest {}", guest.pid());
    events.recv().await;
}

#[test]
fn a_killed_simulator_takes_its_guests_with_it() {
    let Some(lab) = Lab::new() else { return };
    let mut host = Command::new(std::env::current_exe().unwrap())
        .args(["host_of_a_guest", "--exact", "--ignored", "--nocapture"])
        .env("GUEST_HOST_DIRECTORY", lab.directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(host.stdout.take().unwrap()).lines();
    let pid = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("guest ").map(str::to_owned));
    let pid: u32 = pid.expect("the guest starts").parse().unwrap();
    assert!(is_running(pid));
    // SIGKILL: the host has no chance to clean up.
    host.kill().unwrap();
    host.wait().unwrap();
    let since = Instant::now();
    while is_running(pid) {
        assert!(since.elapsed() < PATIENCE, "QEMU {pid} outlived its simulator");
        std::thread::yield_now();
    }
}
