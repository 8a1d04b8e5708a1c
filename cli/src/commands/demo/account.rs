//! What a reader got of an answer, compared with all of it: pure.

/// Tokens of an answer that came, and that did not come as they should.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    /// Pieces of text that came.
    pub(super) received: usize,
    /// Tokens that never came, though later ones did.
    pub(super) lost: usize,
    /// Pieces that came again, or that are no part of the answer.
    pub(super) repeated: usize,
}

/// Compares the pieces, in the order in which they came, with the tokens of the answer: as few as possible are taken for lost or
/// repeated (their longest common subsequence is what came as it should).
pub(super) fn account(pieces: &[String], answer: &[&str]) -> Account {
    let received = pieces.len();
    let good = pieces.iter().zip(answer).take_while(|(piece, token)| piece == *token).count();
    let (pieces, answer) = (&pieces[good..], &answer[good..]);
    if pieces.is_empty() {
        return Account { received, lost: 0, repeated: 0 };
    }
    // common[i][j]: of the pieces from i on and the tokens from j on.
    let mut common = vec![vec![0_u32; answer.len() + 1]; pieces.len() + 1];
    for (i, piece) in pieces.iter().enumerate().rev() {
        for (j, token) in answer.iter().enumerate().rev() {
            common[i][j] =
                if piece == token { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut matched, mut reached) = (0, 0, 0, 0);
    while i < pieces.len() && j < answer.len() {
        if pieces[i] == answer[j] && common[i][j] == common[i + 1][j + 1] + 1 {
            (i, j, matched, reached) = (i + 1, j + 1, matched + 1, j + 1);
        } else if common[i][j + 1] == common[i][j] {
            j += 1;
        } else {
            i += 1;
        }
    }
    Account { received, lost: reached - matched, repeated: pieces.len() - matched }
}

#[cfg(test)]
mod tests {
    use titan_agent::engine::synthetic::word;

    use super::*;

    const TOKENS: u32 = 200;

    /// What is made of the tokens on their way.
    fn of(change: impl FnOnce(&mut Vec<String>)) -> Account {
        let answer: Vec<&str> = (0..TOKENS).map(word).collect();
        let mut pieces: Vec<String> = answer.iter().map(|word| (*word).to_owned()).collect();
        change(&mut pieces);
        account(&pieces, &answer)
    }

    #[test]
    fn an_answer_that_came_as_it_is_has_no_faults_however_far_it_came() {
        for received in [0, 1, 57, 200] {
            assert_eq!(of(|pieces| pieces.truncate(received)), Account { received, lost: 0, repeated: 0 });
        }
    }

    #[test]
    fn every_token_that_is_lost_or_repeated_is_counted() {
        let lost_three = of(|pieces| drop(pieces.drain(80..83)));
        assert_eq!(lost_three, Account { received: 197, lost: 3, repeated: 0 });
        let lost_the_first = of(|pieces| drop(pieces.remove(0)));
        assert_eq!(lost_the_first, Account { received: 199, lost: 1, repeated: 0 });
        let twice = of(|pieces| pieces.insert(120, pieces[119].clone()));
        assert_eq!(twice, Account { received: 201, lost: 0, repeated: 1 });
        let again_from_an_earlier_one = of(|pieces| {
            let again = pieces[90..100].to_vec();
            drop(pieces.splice(100..100, again));
        });
        assert_eq!(again_from_an_earlier_one, Account { received: 210, lost: 0, repeated: 10 });
        let foreign = of(|pieces| pieces.push("Cheshire ".to_owned()));
        assert_eq!(foreign, Account { received: 201, lost: 0, repeated: 1 });
        let swapped = of(|pieces| pieces.swap(10, 11));
        assert_eq!(swapped, Account { received: 200, lost: 1, repeated: 1 });
    }
}
