//! The text of a statement without what its user wrote into it: constants become `$n`, comments go, white space is one space.
//! The words come from the server's own scanner.

/// What a word of a statement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number, string or bit string.
    Constant,
    /// `$1`.
    Parameter,
    /// A word of the language.
    Keyword,
    /// A name.
    Name,
    /// An operator or a sign.
    Sign,
}

/// A word with its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    pub kind: Kind,
    pub text: &'a str,
    /// Whether white space or a comment stands before it.
    pub spaced: bool,
}

/// Which values a statement may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// Constants are values.
    Constants,
    /// Also words behind `SET name =` and `SET name TO`: settings take their values as names too.
    Settings,
    /// Also all names: in a statement that could not be understood nobody knows what is one.
    Names,
}

/// What stands in the middle of a text that was cut.
const CUT: &str = " … ";

/// Puts the words together again.
pub fn normalize<'a>(
    tokens: impl IntoIterator<Item = Token<'a>> + Clone,
    values: Values,
) -> String {
    // Numbers go on behind those of the statement's own parameters.
    let mut number = tokens
        .clone()
        .into_iter()
        .filter(|token| token.kind == Kind::Parameter)
        .filter_map(|token| token.text.get(1..)?.parse::<u32>().ok())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    let mut state = Setting::None;
    for token in tokens {
        if token.spaced && !text.is_empty() {
            text.push(' ');
        }
        let value = match token.kind {
            Kind::Constant => true,
            Kind::Name if values == Values::Names => true,
            Kind::Keyword if state == Setting::Behind && token.text.eq_ignore_ascii_case("set") => {
                false
            }
            Kind::Name | Kind::Keyword => {
                values == Values::Settings && matches!(state, Setting::Value | Setting::Behind)
            }
            Kind::Parameter | Kind::Sign => false,
        };
        if values == Values::Settings {
            state = state.after(token);
        }
        if value {
            number = number.saturating_add(1);
            text.push('$');
            text.push_str(&number.to_string());
        } else {
            text.push_str(token.text);
        }
    }
    text
}

/// Where in `SET name TO value, value` a statement is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Setting {
    None,
    Name,
    /// A value is due: behind `=`, `TO` or a comma.
    Value,
    /// There was one.
    Behind,
}

impl Setting {
    fn after(self, token: Token<'_>) -> Self {
        let is = |word: &str| token.text.eq_ignore_ascii_case(word);
        match self {
            _ if token.kind == Kind::Keyword && is("set") && self != Self::Value => Self::Name,
            Self::Name if is("=") || (token.kind == Kind::Keyword && is("to")) => Self::Value,
            Self::Value | Self::Behind if is(",") || is("-") || is("+") => Self::Value,
            Self::Value | Self::Behind if token.kind != Kind::Sign => Self::Behind,
            Self::Value | Self::Behind => Self::None,
            other => other,
        }
    }
}

/// A text that is no longer than `bytes`: its beginning and, where it is longer, its end.
pub fn shorten(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let room = bytes.saturating_sub(CUT.len());
    let head = floor(text, room - room / 4);
    let tail = text.len() - room / 4;
    let tail = (tail..=text.len())
        .find(|index| text.is_char_boundary(*index))
        .unwrap_or(text.len());
    format!("{}{CUT}{}", &text[..head], &text[tail..])
}

/// The last boundary of a character that is not behind `index`.
pub fn floor(text: &str, index: usize) -> usize {
    (0..=index.min(text.len()))
        .rev()
        .find(|index| text.is_char_boundary(*index))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens(text: &str) -> Vec<Token<'_>> {
        text.split(' ')
            .map(|text| Token {
                kind: match text.chars().next() {
                    Some('\'' | '0'..='9') => Kind::Constant,
                    Some('$') => Kind::Parameter,
                    Some('A'..='Z') => Kind::Keyword,
                    Some('a'..='z' | '"') => Kind::Name,
                    _ => Kind::Sign,
                },
                text,
                spaced: true,
            })
            .collect()
    }

    fn check(text: &str, values: Values, expected: &str) {
        assert_eq!(normalize(tokens(text), values), expected);
    }

    #[test]
    fn constants_become_parameters_behind_those_that_are_there() {
        check(
            "SELECT 'x' , 5 FROM t WHERE a = $2",
            Values::Constants,
            "SELECT $3 , $4 FROM t WHERE a = $2",
        );
    }

    #[test]
    fn values_of_settings_are_names_too() {
        check(
            "SET app.patient = smith",
            Values::Settings,
            "SET app.patient = $1",
        );
        check(
            "SET search_path TO a , 'b' , c",
            Values::Settings,
            "SET search_path TO $1 , $2 , $3",
        );
        check(
            "FUNCTION f() SET app.patient = smith SET app.doctor TO jones , brown AS 'x'",
            Values::Settings,
            "FUNCTION f() SET app.patient = $1 SET app.doctor TO $2 , $3 $4 $5",
        );
        check(
            "ALTER TABLE t SET ( fillfactor = 70 )",
            Values::Settings,
            "ALTER TABLE t SET ( fillfactor = $1 )",
        );
        check(
            "UPDATE t SET a = b",
            Values::Constants,
            "UPDATE t SET a = b",
        );
    }

    #[test]
    fn names_can_be_values_where_nothing_was_understood() {
        check("SELECT smith FROM", Values::Names, "SELECT $1 FROM");
    }

    #[test]
    fn spaces_stay_where_they_were() {
        let tokens =
            [("f", false), ("(", false), ("1", false), (")", false)].map(|(text, spaced)| Token {
                kind: if text == "1" {
                    Kind::Constant
                } else {
                    Kind::Sign
                },
                text,
                spaced,
            });
        assert_eq!(normalize(tokens, Values::Constants), "f($1)");
    }

    proptest! {
        #[test]
        fn shortened_texts_fit(text in "\\PC{0,300}", bytes in 8usize..200) {
            let short = shorten(&text, bytes);
            prop_assert!(short.len() <= bytes.max(text.len().min(bytes)));
            if text.len() <= bytes {
                prop_assert_eq!(short, text);
            }
        }
    }
}
