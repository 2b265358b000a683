//! Whose turn it is. Planes take turns within each round, so that a slow minute of the machine falls on all of them, and each
//! round begins with another one, so that none always follows the same.

/// The order of `count` planes in a round.
pub(super) fn order(count: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |turn| (turn + round) % count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plane_has_a_turn_in_every_round_and_each_round_begins_with_another() {
        let rounds: Vec<Vec<usize>> = (0..4).map(|round| order(4, round).collect()).collect();
        let mut firsts: Vec<usize> = rounds.iter().map(|round| round[0]).collect();
        firsts.sort();
        assert_eq!(firsts, [0, 1, 2, 3]);
        for mut round in rounds {
            round.sort();
            assert_eq!(round, [0, 1, 2, 3]);
        }
        assert_eq!(order(0, 5).count(), 0);
    }
}
