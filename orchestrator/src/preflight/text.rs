//! Findings as text for people: by pool, the worst first, wrapped to a terminal's width.

use super::finding::{Finding, Level};
use crate::printable::printable;

/// Widest line.
pub const WIDTH: usize = 100;
/// Longest code.
pub(super) const CODE_WIDTH: usize = 18;
/// Where the sentences begin.
const INDENT: usize = 2 + LEVEL_WIDTH + 2 + CODE_WIDTH + 2;
const LEVEL_WIDTH: usize = 7;

/// The findings as text, ending in one line that sums them up.
pub fn text(findings: &[Finding]) -> String {
    let mut groups: Vec<(Option<&str>, Vec<&Finding>)> = Vec::new();
    for finding in findings {
        let pool = finding.pool.as_deref();
        match groups.iter_mut().find(|(name, _)| *name == pool) {
            Some((_, group)) => group.push(finding),
            None => groups.push((pool, vec![finding])),
        }
    }
    let mut lines = Vec::new();
    for (pool, mut group) in groups {
        lines
            .push(pool.map_or_else(|| "this machine".to_owned(), |pool| format!("pool {}", printable(pool))));
        group.sort_by_key(|finding| std::cmp::Reverse(finding.level));
        for finding in group {
            lines.extend(entry(finding));
        }
        lines.push(String::new());
    }
    lines.push(sum(findings));
    lines.join("\n")
}

fn entry(finding: &Finding) -> Vec<String> {
    let level = match finding.level {
        Level::Ok => "ok",
        Level::Warning => "warning",
        Level::Error => "ERROR",
    };
    let mut lines = wrap(&finding.message, WIDTH - INDENT);
    if let Some(remedy) = finding.remedy.as_ref().filter(|_| finding.level > Level::Ok) {
        lines.extend(wrap(&format!("-> {remedy}"), WIDTH - INDENT));
    }
    let head = format!("  {level:<LEVEL_WIDTH$}  {:<CODE_WIDTH$}  ", finding.code.as_str());
    let mut heads = std::iter::once(head).chain(std::iter::repeat(" ".repeat(INDENT)));
    lines.into_iter().map(|line| format!("{}{line}", heads.next().unwrap_or_default())).collect()
}

/// One line about all of them.
fn sum(findings: &[Finding]) -> String {
    let count = |level: Level| findings.iter().filter(|finding| finding.level == level).count();
    let plural = |count: usize, word: &str| match count {
        1 => format!("1 {word}"),
        _ => format!("{count} {word}s"),
    };
    match (count(Level::Error), count(Level::Warning)) {
        (0, 0) => "nothing keeps jobs from working".to_owned(),
        (0, warnings) => format!("{}: jobs work, but look at this", plural(warnings, "warning")),
        (errors, 0) => format!("{}: jobs fail until this is mended", plural(errors, "error")),
        (errors, warnings) => format!(
            "{} and {}: jobs fail until the errors are mended",
            plural(errors, "error"),
            plural(warnings, "warning")
        ),
    }
}

/// Breaks text at spaces, as a terminal can show it; a word that is longer than a line has a line of its own.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace().map(printable) {
        let length = word.chars().count();
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + length <= width => {
                line.push(' ');
                line.push_str(&word);
            }
            _ => lines.push(word.into_owned()),
        }
    }
    if lines.is_empty() {
        lines.push(String::new());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::finding::{Code, Object, ObjectKind};
    use super::*;

    fn finding(level: Level, code: Code, pool: Option<&str>, message: &str) -> Finding {
        let object = Object::here(ObjectKind::Installation, "x");
        let finding = Finding::error(
            code,
            object,
            message,
            "do what helps, and do all of it, \
            also where that takes more than one line of a terminal that is a hundred columns wide",
        );
        Finding { level, pool: pool.map(Into::into), ..finding }
    }

    #[test]
    fn text_is_grouped_worst_first_wrapped_and_summed_up() {
        let findings = [
            finding(Level::Ok, Code::State, None, "state directory /var/lib/abd"),
            finding(Level::Ok, Code::Pool, Some("dc1"), "pool 'dc1' answers"),
            finding(Level::Warning, Code::Clock, Some("dc1"), "the clocks are 90 s apart"),
            finding(Level::Error, Code::CertificateExpiry, Some("dc1"), "the certificate has ended"),
        ];
        let text = text(&findings);
        let expected = "\
this machine
  ok       state               state directory /var/lib/abd

pool dc1
  ERROR    certificate-expiry  the certificate has ended
                               -> do what helps, and do all of it, also where that takes more than
                               one line of a terminal that is a hundred columns wide
  warning  clock               the clocks are 90 s apart
                               -> do what helps, and do all of it, also where that takes more than
                               one line of a terminal that is a hundred columns wide
  ok       pool                pool 'dc1' answers

1 error and 1 warning: jobs fail until the errors are mended";
        assert_eq!(text, expected);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
    }

    #[test]
    fn the_last_line_says_what_it_means() {
        let of = |levels: &[Level]| {
            let findings: Vec<_> =
                levels.iter().map(|level| finding(*level, Code::Pool, None, "m")).collect();
            sum(&findings)
        };
        assert_eq!(of(&[Level::Ok]), "nothing keeps jobs from working");
        assert_eq!(of(&[Level::Warning]), "1 warning: jobs work, but look at this");
        assert_eq!(of(&[Level::Error, Level::Error]), "2 errors: jobs fail until this is mended");
    }

    #[test]
    fn long_words_stay_whole() {
        assert_eq!(wrap("a bcdefg h", 4), ["a", "bcdefg", "h"]);
        assert_eq!(wrap("ab cd", 5), ["ab cd"]);
        assert_eq!(wrap("", 5), [""]);
    }
}
