//! Tests of the handshake: who is let in, who is not, and what either learns.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use super::*;

const SOON: Duration = Duration::from_secs(5);

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (connecting, listener.accept().unwrap().0)
}

fn hello() -> Hello {
    Hello {
        job: Name::new("count").unwrap(),
        processes: 3,
        process: 1,
        peer: 0,
        purpose: Purpose::Data,
        attempt: Some(Attempt(7)),
        session: [9; 16],
        nonce: [5; 32],
    }
}

fn accepted() -> Verdict {
    Verdict::Accepted { attempt: Attempt(7), announcement: b"plan".to_vec() }
}

type Ends = (Result<(Attempt, Vec<u8>), HandshakeError>, Result<(), HandshakeError>);

/// Both sides over `connecting` and `accepting`, the accepting one with `verdict`.
fn shake(
    (connecting, accepting): (TcpStream, TcpStream),
    [ours, theirs]: [&Secret; 2],
    verdict: Verdict,
) -> Ends {
    let theirs = theirs.clone();
    let deadline = Instant::now() + SOON;
    let acceptor = thread::spawn(move || {
        let applicant = respond(accepting, &theirs, deadline)?;
        applicant.answer(&theirs, &verdict).map(drop)
    });
    let connected = initiate(&connecting, ours, &hello(), deadline);
    drop(connecting);
    (connected, acceptor.join().unwrap())
}

/// Sends `bytes` to an accepting side, and returns what it made of them and what it answered.
fn send_raw(bytes: &[u8], wait: Duration) -> (HandshakeError, Vec<u8>) {
    let (mut connecting, accepting) = pair();
    connecting.write_all(bytes).unwrap();
    let secret = Secret::generate().unwrap();
    let outcome = respond(accepting, &secret, Instant::now() + wait).map(drop).unwrap_err();
    let mut answer = Vec::new();
    // A reset is as good as an end: bytes of ours may not have been read.
    let _ = connecting.read_to_end(&mut answer);
    (outcome, answer)
}

fn frame(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_le_bytes(), body].concat()
}

#[test]
fn two_processes_with_one_secret_accept_each_other() {
    let secret = Secret::generate().unwrap();
    let (connected, answered) = shake(pair(), [&secret, &secret], accepted());
    assert_eq!(connected.unwrap(), (Attempt(7), b"plan".to_vec()));
    answered.unwrap();
}

#[test]
fn an_announcement_of_the_largest_size_arrives() {
    let secret = Secret::generate().unwrap();
    let announcement = vec![0xFF; super::super::ANNOUNCEMENT_BYTES_MAX];
    let verdict = Verdict::Accepted { attempt: Attempt(u64::MAX), announcement };
    let (connected, answered) = shake(pair(), [&secret, &secret], verdict);
    answered.unwrap();
    assert_eq!(connected.unwrap().1.len(), super::super::ANNOUNCEMENT_BYTES_MAX);
}

#[test]
fn two_processes_with_different_secrets_refuse_each_other() {
    let [ours, theirs] = [Secret::generate().unwrap(), Secret::generate().unwrap()];
    let (connected, answered) = shake(pair(), [&ours, &theirs], accepted());
    assert!(matches!(connected, Err(HandshakeError::Unproven)), "{connected:?}");
    assert!(matches!(answered, Err(HandshakeError::Closed)), "{answered:?}");
}

#[test]
fn a_refusal_reaches_the_connecting_side_with_its_reason() {
    let secret = Secret::generate().unwrap();
    let refusal = Refusal::Job { ours: Name::new("other").unwrap(), theirs: hello().job };
    let (connected, _) = shake(pair(), [&secret, &secret], Verdict::Refused(refusal.clone()));
    let error = connected.unwrap_err();
    assert!(error.is_lasting());
    assert!(error.to_string().contains("it runs job other, not count"), "{error}");
    assert!(matches!(error, HandshakeError::Refused(r) if r == refusal));
}

#[test]
fn a_peer_of_another_version_is_told_ours_and_nothing_else() {
    let mut body = encode(&hello());
    body[MAGIC.len()] = 77;
    body.truncate(PREFIX_BYTES + 3);
    let (outcome, answer) = send_raw(&frame(&body), SOON);
    assert!(matches!(outcome, HandshakeError::Version { theirs: 77 }), "{outcome}");
    assert_eq!(answer, frame(&encode(&())));
}

#[test]
fn the_connecting_side_names_the_version_of_the_other() {
    let (connecting, mut accepting) = pair();
    let prefix = [MAGIC.as_slice(), &9u16.to_le_bytes()].concat();
    accepting.write_all(&frame(&prefix)).unwrap();
    let secret = Secret::generate().unwrap();
    let error = initiate(&connecting, &secret, &hello(), Instant::now() + SOON).unwrap_err();
    assert!(error.is_lasting());
    assert!(error.to_string().contains("version 9"), "{error}");
}

#[test]
fn an_acceptor_that_only_repeats_what_it_hears_is_unmasked() {
    let (connecting, mut accepting) = pair();
    let echo = thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(n @ 1..) = accepting.read(&mut bytes) {
            if accepting.write_all(&bytes[..n]).is_err() {
                break;
            }
        }
    });
    let secret = Secret::generate().unwrap();
    let error = initiate(&connecting, &secret, &hello(), Instant::now() + SOON).unwrap_err();
    assert!(matches!(error, HandshakeError::Malformed | HandshakeError::Unproven), "{error}");
    drop(connecting);
    echo.join().unwrap();
}

#[test]
fn a_recorded_handshake_cannot_be_played_again() {
    let secret = Secret::generate().unwrap();
    let (near, mut far) = pair();
    let (mut onward, accepting) = pair();
    let tape = thread::spawn(move || relay(&mut far, &mut onward).unwrap());
    let theirs = secret.clone();
    let acceptor = thread::spawn(move || {
        let applicant = respond(accepting, &theirs, Instant::now() + SOON).unwrap();
        applicant.answer(&theirs, &accepted()).map(drop)
    });
    initiate(&near, &secret, &hello(), Instant::now() + SOON).unwrap();
    acceptor.join().unwrap().unwrap();
    let recorded = tape.join().unwrap().concat();

    let (mut connecting, accepting) = pair();
    connecting.write_all(&recorded).unwrap();
    let outcome = respond(accepting, &secret, Instant::now() + SOON).unwrap_err();
    assert!(matches!(outcome, HandshakeError::Unproven), "{outcome}");
}

/// Passes all four messages on. Returns what the connecting side said.
fn relay(connector: &mut TcpStream, acceptor: &mut TcpStream) -> io::Result<Vec<Vec<u8>>> {
    let mut said = Vec::new();
    for _ in 0..2 {
        said.push(read_raw(connector)?);
        acceptor.write_all(&said[said.len() - 1])?;
        connector.write_all(&read_raw(acceptor)?)?;
    }
    Ok(said)
}

/// A frame with its length.
fn read_raw(from: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut body = vec![0; u32::from_le_bytes(length) as usize];
    from.read_exact(&mut body)?;
    Ok([length.to_vec(), body].concat())
}

#[test]
fn a_byte_changed_on_the_way_fails_the_handshake() {
    let secret = Secret::generate().unwrap();
    // Which of the four messages, and which byte of it; nonces and proofs differ in every run.
    let sizes = [encode(&hello()).len(), PREFIX_BYTES + 64, PREFIX_BYTES + 32, PREFIX_BYTES + 39];
    let mut failed = 0;
    for (message, size) in sizes.into_iter().enumerate() {
        for place in (0..size).step_by(2) {
            let (near, mut far) = pair();
            let (mut onward, accepting) = pair();
            let man_in_the_middle = thread::spawn(move || -> io::Result<()> {
                for index in 0..4 {
                    let (from, to) = match index % 2 {
                        0 => (&mut far, &mut onward),
                        _ => (&mut onward, &mut far),
                    };
                    let mut bytes = read_raw(from)?;
                    if index == message {
                        bytes[4 + place] ^= 0x10;
                    }
                    to.write_all(&bytes)?;
                }
                Ok(())
            });
            let (connected, answered) = shake((near, accepting), [&secret, &secret], accepted());
            assert!(connected.is_err() || answered.is_err(), "message {message} byte {place}");
            // A changed verdict is seen by the connecting side, everything else by both.
            assert!(connected.is_err(), "message {message} byte {place}");
            failed += 1;
            let _ = man_in_the_middle.join().unwrap();
        }
    }
    assert!(failed > 100, "{failed}");
}

#[test]
fn junk_is_turned_away() {
    let (outcome, answer) = send_raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", SOON);
    assert!(matches!(outcome, HandshakeError::TooLong { .. }), "{outcome}");
    assert!(answer.is_empty());
    let (outcome, answer) = send_raw(&frame(&[0; 100]), SOON);
    assert!(matches!(outcome, HandshakeError::Foreign), "{outcome}");
    assert!(answer.is_empty());
    let (outcome, _) = send_raw(&frame(&[&encode(&hello())[..], &[0]].concat()), SOON);
    assert!(matches!(outcome, HandshakeError::Malformed), "{outcome}");
}

#[test]
fn a_frame_that_is_too_long_is_refused_by_its_length() {
    for length in [UNPROVEN_BYTES_MAX + 1, FRAME_BYTES_MAX, u32::MAX as usize] {
        let (outcome, _) = send_raw(&(length as u32).to_le_bytes(), SOON);
        assert!(
            matches!(outcome, HandshakeError::TooLong { bytes, .. } if bytes == length),
            "{outcome}"
        );
    }
}

#[test]
fn a_peer_that_drips_bytes_gets_no_more_time_than_a_silent_one() {
    let deadline = Duration::from_millis(150);
    let (outcome, _) = send_raw(&[], deadline);
    assert!(matches!(outcome, HandshakeError::Late), "{outcome}");

    let (connecting, accepting) = pair();
    let dripping = thread::spawn(move || {
        let mut dripped = 0;
        for byte in frame(&encode(&hello())).iter().cycle() {
            if (&connecting).write_all(&[*byte]).is_err() {
                break;
            }
            dripped += 1;
            thread::sleep(Duration::from_millis(10)); // A fault: a peer that is slow on purpose.
        }
        dripped
    });
    let started = Instant::now();
    let secret = Secret::generate().unwrap();
    let outcome = respond(accepting, &secret, started + deadline).map(drop).unwrap_err();
    assert!(matches!(outcome, HandshakeError::Late), "{outcome}");
    assert!(started.elapsed() < deadline * 10);
    assert!(dripping.join().unwrap() > 1);
}

#[test]
fn mutated_messages_never_panic_the_decoders() {
    let verdicts = [
        accepted(),
        Verdict::Refused(Refusal::Duplicate { theirs: 2 }),
        Verdict::Refused(Refusal::Attempt { ours: Attempt(3), theirs: None }),
    ];
    let mut seeds: Vec<Vec<u8>> = vec![
        encode(&hello()),
        encode(&Challenge { nonce: [1; 32], proof: [2; 32] }),
        encode(&Proof { proof: [3; 32] }),
    ];
    seeds.extend(verdicts.iter().map(|verdict| encode(&(verdict, [4u8; PROOF_BYTES]))));
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    let (mut decoded, mut refused) = (0, 0);
    for case in 0..100_000 {
        let mut bytes = seeds[case % seeds.len()].clone();
        for _ in 0..=random() % 4 {
            let place = random() % (bytes.len() + 1);
            match random() % 5 {
                0 => bytes.truncate(place.max(1)),
                1 => bytes.insert(place, random() as u8),
                2 => bytes.extend(std::iter::repeat_n(0xFF, random() % 40)),
                _ => {
                    let place = place % bytes.len();
                    bytes[place] ^= 1 << (random() % 8);
                }
            }
        }
        let outcomes = [
            decode::<Hello>(&bytes).is_ok(),
            decode::<Challenge>(&bytes).is_ok(),
            decode::<Proof>(&bytes).is_ok(),
            decode::<(Verdict, [u8; PROOF_BYTES])>(&bytes).is_ok(),
            decode::<()>(&bytes).is_ok(),
        ];
        if outcomes.contains(&true) { decoded += 1 } else { refused += 1 }
    }
    // The mutations reached both what the prefix turns away and what lies behind it.
    assert!(decoded > 1_000 && refused > 1_000, "{decoded} {refused}");
}
