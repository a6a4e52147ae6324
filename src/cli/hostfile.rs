//! The file of hosts: one `host:port` a line, in the order of the processes.
//!
//! Blank lines and what follows a `#` do not count. More lines than processes are allowed, as
//! timely has it; fewer are an error.

use std::net::IpAddr;
use std::path::Path;

use super::error::CliError;
use super::file::read_text;
use super::units::shorten;

/// The address of each process.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Hosts {
    pub addresses: Vec<String>,
    /// The first address that other machines can reach, with the place where it is written.
    pub reachable: Option<(String, String)>,
}

/// Reads the file that `given` names.
pub(crate) fn read(path: &Path, given: &str, processes: usize) -> Result<Hosts, CliError> {
    parse(&path.display().to_string(), &read_text(path, given)?, processes)
}

fn parse(path: &str, text: &str, processes: usize) -> Result<Hosts, CliError> {
    let mut hosts = Hosts { addresses: Vec::new(), reachable: None };
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let address = line.split('#').next().unwrap_or("").trim();
        if address.is_empty() {
            continue;
        }
        let given = format!("{path}:{}", index + 1);
        let error = |problem| CliError::Hostfile { given: given.clone(), problem };
        let host = check(address).map_err(error)?;
        if let Some(first) = hosts.addresses.iter().position(|known| known == address) {
            return Err(error(format!("`{address}` is already on line {}", lines[first])));
        }
        if hosts.addresses.len() < processes && hosts.reachable.is_none() && !is_loopback(host) {
            hosts.reachable = Some((given.clone(), address.to_owned()));
        }
        hosts.addresses.push(address.to_owned());
        lines.push(index + 1);
    }
    let count = hosts.addresses.len();
    if count < processes {
        return Err(CliError::Hostfile {
            given: path.to_owned(),
            problem: format!(
                "{count} hosts for {processes} processes: write one `host:port` a line for each \
                 process, or start fewer processes (-n)"
            ),
        });
    }
    hosts.addresses.truncate(processes);
    Ok(hosts)
}

/// The host of `host:port`; an IPv6 address is in brackets.
fn check(address: &str) -> Result<&str, String> {
    let wrong = |why: &str| {
        let address = shorten(address);
        format!("`{address}` {why}: write `host:port`, for example `10.0.0.7:2101` or `[::1]:2101`")
    };
    let (host, port) = address.rsplit_once(':').ok_or_else(|| wrong("has no port"))?;
    if !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err(wrong("has no port between 1 and 65535"));
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match bare {
        Some(inner) if inner.parse::<std::net::Ipv6Addr>().is_err() => {
            Err(wrong("has no IPv6 address in its brackets"))
        }
        None if host.contains(':') => Err(wrong("needs brackets around its IPv6 address")),
        None if host.is_empty() || host.contains(char::is_whitespace) => Err(wrong("has no host")),
        _ => Ok(bare.unwrap_or(host)),
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_blank_lines_and_spare_lines_do_not_count() {
        let text = "# the cluster\n\n 10.0.0.1:2101  # first\nlocalhost:2102\r\n[::1]:2103\n";
        let hosts = parse("hosts", text, 2).unwrap();
        assert_eq!(hosts.addresses, ["10.0.0.1:2101", "localhost:2102"]);
        assert_eq!(hosts.reachable, Some(("hosts:3".to_owned(), "10.0.0.1:2101".to_owned())));
        let local = parse("hosts", "localhost:1\n127.0.0.2:1\n[::1]:1\nexample.org:1", 3).unwrap();
        assert_eq!((local.addresses.len(), local.reachable), (3, None));
    }

    #[test]
    fn fewer_lines_than_processes_are_an_error_that_says_both_numbers() {
        let error = parse("hosts", "a:1\nb:2\n", 3).unwrap_err().to_string();
        assert!(error.starts_with("hosts: 2 hosts for 3 processes"), "{error}");
    }

    #[test]
    fn a_bad_line_is_an_error_with_its_number() {
        for (line, part) in [
            ("alpha", "has no port"),
            ("alpha:0", "between 1 and 65535"),
            ("alpha:70000", "between 1 and 65535"),
            (":2101", "has no host"),
            ("a b:2101", "has no host"),
            ("::1:2101", "needs brackets"),
            ("[alpha]:2101", "no IPv6 address in its brackets"),
            ("ok:1", "is already on line 1"),
        ] {
            let error = parse("hosts", &format!("ok:1\n{line}\n"), 1).unwrap_err().to_string();
            assert!(error.starts_with("hosts:2: "), "{error}");
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
