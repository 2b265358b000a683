//! Which endpoint each client of a Service stays with (`sessionAffinity: ClientIP`), as kube-proxy keeps it: by the client's address and
//! the Service's port, for a time after its last connection, and forgotten when the endpoint is gone.
//!
//! Each pod has its own, which goes with it, so that no pod makes another one's clients lose their place. What is not remembered, also
//! because this worker has just started, is chosen by a hash of both ends: it is the same endpoint again as long as they are the same
//! ones.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mesh_model::ServiceKey;
use rand::seq::IteratorRandom as _;

/// How many are remembered for one pod. A pod has two addresses; that many ports of Services with affinity are called by no pod that
/// anybody has told of (a guess). What is beyond is chosen by the hash alone.
const MOST: usize = 4_096;

/// The sessions of one pod.
#[derive(Debug, Default)]
pub struct Sessions {
    known: Mutex<HashMap<Session, Stay>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Session {
    client: IpAddr,
    service: ServiceKey,
    port: u16,
}

#[derive(Clone, Copy, Debug)]
struct Stay {
    endpoint: SocketAddr,
    until: Instant,
}

impl Sessions {
    /// The endpoint for a connection of the client that is made now; which of these, `None` if there is none.
    pub fn choose(
        &self,
        client: IpAddr,
        service: &ServiceKey,
        port: u16,
        endpoints: &[SocketAddr],
        timeout: Duration,
        now: Instant,
    ) -> Option<usize> {
        let session = Session { client: client.to_canonical(), service: service.clone(), port };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let stay = known.get(&session).copied();
        let at = stay.and_then(|stay| endpoints.iter().position(|endpoint| *endpoint == stay.endpoint));
        let chosen = match (at, stay) {
            (Some(at), Some(stay)) if now < stay.until => at,
            // It has been away for long: by chance, as at first.
            (Some(_), Some(_)) => (0..endpoints.len()).choose(&mut rand::rng())?,
            _ => match (0..endpoints.len()).max_by_key(|at| weight(&session, endpoints[*at])) {
                Some(at) => at,
                None => {
                    known.remove(&session);
                    return None;
                }
            },
        };
        if stay.is_none() && known.len() >= MOST {
            let first_to_end = known.iter().min_by_key(|(_, stay)| stay.until).map(|(session, _)| session.clone());
            first_to_end.map(|session| known.remove(&session));
        }
        known.insert(session, Stay { endpoint: endpoints[chosen], until: now + timeout });
        Some(chosen)
    }
}

/// How much an endpoint is meant for a session (rendezvous hashing: one that comes or goes moves no others). FNV-1a, with the end of
/// MurmurHash3 so that close values have weights far apart; the same in every build, since the worker of the next one takes over.
fn weight(session: &Session, endpoint: SocketAddr) -> u64 {
    let Session { client, service, port } = session;
    let text = format!("{client} {service} {port} {endpoint}");
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10_800);

    fn service() -> ServiceKey {
        ServiceKey { namespace: "shop".into(), hostname: "cart.shop.svc.cluster.local".into() }
    }

    fn endpoints(count: u8) -> Vec<SocketAddr> {
        (1..=count).flat_map(|n| [SocketAddr::from(([198, 18, 2, n], 8080))]).collect()
    }

    fn client(n: u16) -> IpAddr {
        let [high, low] = n.to_be_bytes();
        if n.is_multiple_of(2) {
            IpAddr::from([198, 18, high, low])
        } else {
            IpAddr::from([0xfd77, 0, 0, 0, 0, 0, 0, n])
        }
    }

    fn choose(sessions: &Sessions, client: IpAddr, endpoints: &[SocketAddr], now: Instant) -> Option<SocketAddr> {
        sessions.choose(client, &service(), 80, endpoints, TIMEOUT, now).map(|at| endpoints[at])
    }

    #[test]
    fn a_client_stays_with_its_endpoint_while_others_come_and_go_and_clients_share_them() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        let mut of_each = HashMap::<SocketAddr, usize>::new();
        for n in 0..400 {
            let first = choose(&sessions, client(n), &endpoints(4), start).expect("one");
            *of_each.entry(first).or_default() += 1;
            let mut more = endpoints(9);
            more.reverse();
            assert_eq!(choose(&sessions, client(n), &more, start + TIMEOUT / 2), Some(first));
            more.retain(|one| *one == first);
            assert_eq!(
                choose(&sessions, client(n), &more, start + TIMEOUT),
                Some(first),
                "each connection begins it anew"
            );
            more.push(([198, 18, 9, 9], 1).into());
            assert_eq!(
                choose(&sessions, client(n), &more, start + TIMEOUT * 2 - Duration::from_millis(1)),
                Some(first)
            );
        }
        assert_eq!(of_each.len(), 4, "{of_each:?}");
        assert!(of_each.values().all(|times| (60..140).contains(times)), "{of_each:?}");
    }

    #[test]
    fn an_endpoint_that_is_gone_is_forgotten() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        let all = endpoints(4);
        let first = choose(&sessions, client(0), &all, start).expect("one");
        let rest: Vec<SocketAddr> = all.iter().copied().filter(|one| *one != first).collect();
        let second = choose(&sessions, client(0), &rest, start).expect("another");
        assert_ne!(second, first);
        assert_eq!(choose(&sessions, client(0), &all, start), Some(second), "it is back");
        assert_eq!(choose(&sessions, client(0), &[], start), None);
        assert!(sessions.known.lock().expect("no panic").is_empty());
    }

    #[test]
    fn a_client_that_was_away_for_long_is_led_anywhere() {
        let start = Instant::now();
        let mut led = std::collections::HashSet::new();
        for n in 0..60 {
            let sessions = Sessions::default();
            let _ = choose(&sessions, client(0), &endpoints(4), start);
            led.extend(choose(&sessions, client(0), &endpoints(4), start + TIMEOUT + Duration::from_secs(n)));
        }
        assert_eq!(led.len(), 4);
    }

    #[test]
    fn a_new_worker_leads_to_the_same_endpoints_as_the_one_before() {
        let start = Instant::now();
        let (one, other) = (Sessions::default(), Sessions::default());
        for n in 0..100 {
            assert_eq!(choose(&one, client(n), &endpoints(5), start), choose(&other, client(n), &endpoints(5), start));
        }
        // Of any build: these are what the first one chose.
        let none_known = |n| Sessions::default().choose(client(n), &service(), 80, &endpoints(5), TIMEOUT, start);
        let chosen: Vec<usize> = (0..8).filter_map(none_known).collect();
        assert_eq!(chosen, [4, 4, 3, 0, 0, 2, 4, 1]);
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for_and_the_first_to_end_makes_it() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        for n in 0..MOST + 100 {
            let now = start + Duration::from_millis(n as u64);
            let _ = choose(&sessions, client(u16::try_from(n).expect("few")), &endpoints(2), now);
        }
        let known = sessions.known.lock().expect("no panic");
        assert_eq!(known.len(), MOST);
        assert!(known.values().all(|stay| stay.until >= start + TIMEOUT + Duration::from_millis(100)));
    }
}
