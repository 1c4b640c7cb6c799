//! Which of two versions is newer.

use std::cmp::Ordering;

/// Compares versions by their numbers, from left to right; a missing one is 0, and what is no number counts as 0.
/// What follows a `-` or `+` does not count.
pub(super) fn compare(left: &str, right: &str) -> Ordering {
    let numbers = |text: &str| {
        let core = text.split(['-', '+']).next().unwrap_or_default().to_owned();
        let mut numbers: Vec<u64> = core.split('.').map(|part| part.trim().parse().unwrap_or(0)).collect();
        while numbers.last() == Some(&0) {
            numbers.pop();
        }
        numbers
    };
    numbers(left).cmp(&numbers(right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for (older, newer) in
            [("0.1.0", "0.2.0"), ("0.9.0", "0.10.0"), ("1.2.3", "1.2.4"), ("", "0.0.1"), ("1", "1.0.1")]
        {
            assert_eq!(compare(older, newer), Ordering::Less, "{older} {newer}");
            assert_eq!(compare(newer, older), Ordering::Greater, "{newer} {older}");
        }
        for (left, right) in [("1.0.0", "1.0.0"), ("1", "1.0.0"), ("1.0.0-rc1", "1.0.0"), ("x", "0")] {
            assert_eq!(compare(left, right), Ordering::Equal, "{left} {right}");
        }
    }
}
