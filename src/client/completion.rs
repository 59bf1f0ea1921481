//! Completion with Tab: commands, names, files.
//!
//! Invariant: pure; the caller provides the names and the paths. A candidate contains nothing that cannot be typed, and
//! begins with the typed text, except for letter case and the `@` of a mention.

use super::command::COMMANDS;
use super::terminal::editor::Completion;
use super::text::is_harmful;

/// The most candidates: nobody presses Tab more often.
const MAX_CANDIDATES: usize = 200;

/// Completes `before`, the text before the cursor. `people` has the most likely name first; `paths` returns the
/// completions of a typed path.
pub fn complete<'a>(
    before: &str,
    people: impl Iterator<Item = &'a str>,
    paths: impl FnOnce(&str) -> Vec<String>,
) -> Completion {
    let (typed, mut candidates) = match place(before) {
        Place::Nothing => return Completion::default(),
        Place::Command(typed) => {
            let named = COMMANDS.iter().filter(|usage| usage.name != "/" && begins(usage.name, typed));
            let space = |usage: &str| if usage.contains(' ') { " " } else { "" };
            (typed, named.map(|usage| format!("{}{}", usage.name, space(usage.usage))).collect())
        }
        Place::Person(typed, start, end) => {
            let named = people.filter(|name| begins(name, typed)).take(MAX_CANDIDATES);
            (typed, named.map(|name| format!("{start}{name}{end}")).collect())
        }
        Place::File(path) => {
            let mut paths = paths(path);
            paths.retain(|path| !path.contains(is_harmful));
            (path, paths)
        }
    };
    candidates.truncate(MAX_CANDIDATES);
    Completion { start: before.len() - typed.len(), candidates }
}

/// The kind of word that a text ends with.
enum Place<'a> {
    Command(&'a str),
    /// The typed part of a name, and the texts to put before and after the name.
    Person(&'a str, &'static str, &'static str),
    File(&'a str),
    Nothing,
}

fn place(before: &str) -> Place<'_> {
    let command = before.strip_prefix('/').filter(|rest| !rest.starts_with('/') && !rest.contains('\n'));
    if let Some(argument) = command.and_then(argument) {
        return argument;
    }
    let in_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let typed = &before[before.trim_end_matches(in_name).len()..];
    match before[..before.len() - typed.len()].strip_suffix('@') {
        Some(ahead) if !ahead.ends_with(in_name) => Place::Person(typed, "", ""),
        // A name at the start addresses that user, so it becomes a mention.
        None if typed == before && !typed.is_empty() => Place::Person(typed, "@", ": "),
        _ => Place::Nothing,
    }
}

/// The argument being typed in a command's line, by its usage; `None` if it is text.
fn argument(line: &str) -> Option<Place<'_>> {
    let Some((word, rest)) = line.split_once(' ') else { return Some(Place::Command(line)) };
    let usage = COMMANDS.iter().find(|usage| usage.name.eq_ignore_ascii_case(word))?;
    let mut rest = rest.trim_start();
    for kind in usage.usage.split(' ').skip(1) {
        // The last of several names.
        if kind.contains("NAME...") {
            rest = rest.rsplit(' ').next().unwrap_or(rest);
        }
        match (kind, rest.split_once(' ')) {
            ("PATH", _) => return Some(Place::File(rest)),
            (_, Some((_, after))) => rest = after.trim_start(),
            (kind, None) if kind.contains("NAME") => {
                let rest = rest.rsplit(',').next().unwrap_or(rest);
                return Some(Place::Person(rest.strip_prefix('@').unwrap_or(rest), "", " "));
            }
            ("[COMMAND]", None) => return Some(Place::Command(rest.strip_prefix('/').unwrap_or(rest))),
            (_, None) => return None,
        }
    }
    None
}

fn begins(name: &str, typed: &str) -> bool {
    name.get(..typed.len()).is_some_and(|start| start.eq_ignore_ascii_case(typed))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEOPLE: [&str; 4] = ["bob", "Alice", "albert", "al-1"];

    /// The completions of `before`.
    fn completed(before: &str) -> Vec<String> {
        let paths = |typed: &str| match typed {
            "~/a " => vec!["~/a b".to_string(), "~/a c/".into(), "~/a \u{202e}".into()],
            _ => Vec::new(),
        };
        let Completion { start, candidates } = complete(before, PEOPLE.into_iter(), paths);
        candidates.iter().map(|text| format!("{}{text}", &before[..start])).collect()
    }

    #[test]
    fn completed_command_ends_with_a_space_if_more_follows() {
        assert_eq!(completed("/se"), ["/sendfile "]);
        assert_eq!(completed("/R"), ["/room ", "/rejectfile "]);
        assert_eq!(completed("/lea"), ["/leave"]);
        assert_eq!(completed("/help /ver"), ["/help /verify "]);
        assert_eq!(completed("/").len(), COMMANDS.len() - 1);
        for nothing in ["/xyz", "//se", "se/", "/ ", "/leave ", "/history ", "/se\n/se"] {
            assert!(completed(nothing).is_empty(), "{nothing:?}");
        }
    }

    #[test]
    fn names_complete_in_any_letter_case_where_one_is_expected() {
        assert_eq!(completed("al"), ["@Alice: ", "@albert: ", "@al-1: "]);
        assert_eq!(completed("hi @AL"), ["hi @Alice", "hi @albert", "hi @al-1"]);
        assert_eq!(completed("(@bo"), ["(@bob"]);
        assert_eq!(completed("two\nlines @b"), ["two\nlines @bob"]);
        assert_eq!(completed("/msg b"), ["/msg bob "]);
        assert_eq!(completed("/ignore b"), ["/ignore bob "]);
        assert_eq!(completed("/view b"), ["/view bob "]);
        assert_eq!(completed("/ROOM @b"), ["/ROOM @bob "]);
        assert_eq!(completed("/room bob  Alice alb"), ["/room bob  Alice albert "]);
        assert_eq!(completed("/room bob,al-"), ["/room bob,al-1 "]);
        assert_eq!(completed("/msg bob,@alB"), ["/msg bob,@albert "]);
        assert_eq!(completed("/trust ").len(), PEOPLE.len());
        assert_eq!(completed("/msg bob hi @alb"), ["/msg bob hi @albert"]);
        for nothing in ["", "hi al", "mail@al", "@bobby", "/msg bob al", "é", "/verify bob y"] {
            assert!(completed(nothing).is_empty(), "{nothing:?}");
        }
    }

    #[test]
    fn path_is_completed_from_its_beginning() {
        let path = |path: &str| format!("/sendfile bob {path}");
        assert_eq!(completed(&path("~/a ")), [path("~/a b"), path("~/a c/")]);
        assert!(completed(&path("none/")).is_empty());
        assert_eq!(completed("/sendfile b"), ["/sendfile bob "]);
    }
}
