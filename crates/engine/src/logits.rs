//! What a model computed for the next token, one number per token of its vocabulary.

/// Whether a choice can be made: no number is undefined or beyond all others, and some are not ruled out.
pub(crate) fn usable(logits: &[f32]) -> bool {
    let sound = logits.iter().all(|logit| !logit.is_nan() && *logit < f32::INFINITY);
    sound && logits.iter().any(|logit| *logit > f32::NEG_INFINITY)
}

/// The first of the largest.
pub(crate) fn likeliest(logits: &[f32]) -> usize {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best
}

/// Natural logarithms of probabilities: of `chosen`, and of the `top` likeliest tokens, likeliest first.
pub(crate) fn logprobs(logits: &[f32], chosen: usize, top: usize) -> (f32, Vec<(usize, f32)>) {
    let largest = logits[likeliest(logits)];
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    let all = f64::from(largest) + sum.ln();
    let logprob = |token: usize| (f64::from(logits[token]) - all) as f32;
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let by_logit = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    let top = top.min(order.len());
    if top > 0 && top < order.len() {
        order.select_nth_unstable_by(top - 1, by_logit);
    }
    order.truncate(top);
    order.sort_unstable_by(by_logit);
    (logprob(chosen), order.into_iter().map(|token| (token, logprob(token))).collect())
}

/// To length one, as Ollama hands out embeddings; a vector of nothing stays so.
pub(crate) fn normalise(vector: &mut [f32]) {
    let square: f64 = vector.iter().map(|number| f64::from(*number) * f64::from(*number)).sum();
    if square > 0.0 && square.is_finite() {
        let scale = (1.0 / square.sqrt()) as f32;
        vector.iter_mut().for_each(|number| *number *= scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equals_is_chosen() {
        assert_eq!(likeliest(&[0.0, 3.0, 1.0, 3.0]), 1);
        assert_eq!(likeliest(&[f32::NEG_INFINITY, -1.0]), 1);
    }

    #[test]
    fn broken_weights_are_noticed() {
        assert!(usable(&[0.0, f32::NEG_INFINITY]));
        assert!(!usable(&[0.0, f32::NAN]));
        assert!(!usable(&[0.0, f32::INFINITY]));
        assert!(!usable(&[f32::NEG_INFINITY]));
        assert!(!usable(&[]));
    }

    #[test]
    fn probabilities_sum_to_one_and_come_in_order() {
        let logits = [1.0, 50.0, -3.0, 49.0, f32::NEG_INFINITY];
        let (chosen, all) = logprobs(&logits, 3, 9);
        let sum: f32 = all.iter().map(|(_, logprob)| logprob.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
        assert_eq!(all.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 3, 0, 2, 4]);
        assert_eq!(chosen, all[1].1);
        assert!((all[0].1 - all[1].1 - 1.0).abs() < 1e-6);
        assert_eq!(logprobs(&logits, 0, 2).1, all[..2]);
        assert!(logprobs(&logits, 0, 0).1.is_empty());
    }

    #[test]
    fn a_vector_gets_length_one() {
        let mut vector = [3.0, 4.0];
        normalise(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
        let mut nothing = [0.0, 0.0];
        normalise(&mut nothing);
        assert_eq!(nothing, [0.0, 0.0]);
    }
}
