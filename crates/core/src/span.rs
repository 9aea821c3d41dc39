//! A span of calendar time: months, days and microseconds kept apart, as PostgreSQL's `interval` does, because a month
//! has no fixed length.

use chrono::{Days, Duration, Months, NaiveDateTime};
use std::str::FromStr;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub months: i32,
    pub days: i32,
    pub micros: i64,
}

/// PostgreSQL compares intervals with 30 days to the month.
const MICROS_PER_DAY: i128 = 86_400_000_000;

impl Span {
    pub const fn months(months: i32) -> Self {
        Self {
            months,
            days: 0,
            micros: 0,
        }
    }

    pub const fn days(days: i32) -> Self {
        Self {
            months: 0,
            days,
            micros: 0,
        }
    }

    /// Whether every part is zero or more and one is more: a span that can be kept or looked ahead.
    pub const fn is_positive(self) -> bool {
        self.months >= 0
            && self.days >= 0
            && self.micros >= 0
            && (self.months > 0 || self.days > 0 || self.micros > 0)
    }

    /// Length with 30 days to the month, for estimates only.
    pub const fn approximate_days(self) -> i64 {
        let micros =
            (self.months as i128 * 30 + self.days as i128) * MICROS_PER_DAY + self.micros as i128;
        (micros / MICROS_PER_DAY) as i64
    }

    /// `local` plus this span: months first, then days, then the rest, in PostgreSQL's order.
    pub fn after(self, local: NaiveDateTime) -> Option<NaiveDateTime> {
        shift(local, self.months.into(), self.days.into(), self.micros)
    }

    /// `local` minus this span, in PostgreSQL's order.
    pub fn before(self, local: NaiveDateTime) -> Option<NaiveDateTime> {
        shift(
            local,
            -i64::from(self.months),
            -i64::from(self.days),
            self.micros.checked_neg()?,
        )
    }
}

fn shift(local: NaiveDateTime, months: i64, days: i64, micros: i64) -> Option<NaiveDateTime> {
    let month_count = Months::new(u32::try_from(months.unsigned_abs()).ok()?);
    let by_months = if months < 0 {
        local.checked_sub_months(month_count)?
    } else {
        local.checked_add_months(month_count)?
    };
    let day_count = Days::new(days.unsigned_abs());
    let by_days = if days < 0 {
        by_months.checked_sub_days(day_count)?
    } else {
        by_months.checked_add_days(day_count)?
    };
    by_days.checked_add_signed(Duration::microseconds(micros))
}

/// Reads `13 months`, `1 year 6 months`, `90 days`, `2 weeks`: what a setting needs, without a server.
impl FromStr for Span {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut span = Span::default();
        let mut words = text.split_ascii_whitespace().peekable();
        words.peek().ok_or(())?;
        while let Some(number) = words.next() {
            let count: i32 = number.parse().map_err(|_| ())?;
            if count < 0 {
                return Err(());
            }
            let unit = words.next().ok_or(())?.to_ascii_lowercase();
            let (field, factor) = match unit.trim_end_matches('s') {
                "day" => (&mut span.days, 1),
                "week" => (&mut span.days, 7),
                "mon" | "month" => (&mut span.months, 1),
                "year" => (&mut span.months, 12),
                _ => return Err(()),
            };
            let added = count.checked_mul(factor).ok_or(())?;
            *field = field.checked_add(added).ok_or(())?;
        }
        Ok(span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> NaiveDateTime {
        NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M").unwrap()
    }

    #[test]
    fn reads_what_settings_say() {
        assert_eq!("13 months".parse(), Ok(Span::months(13)));
        assert_eq!("1 year 6 months".parse(), Ok(Span::months(18)));
        assert_eq!("90 days".parse(), Ok(Span::days(90)));
        assert_eq!(" 2  Weeks ".parse(), Ok(Span::days(14)));
        assert_eq!("1 mon".parse(), Ok(Span::months(1)));
        for wrong in [
            "",
            "13",
            "months",
            "-1 months",
            "1 hour",
            "99999999999 days",
            "400000000 years",
        ] {
            assert_eq!(wrong.parse::<Span>(), Err(()), "{wrong}");
        }
    }

    #[test]
    fn adds_like_postgresql() {
        assert_eq!(
            Span::months(1).after(at("2024-01-31 10:00")),
            Some(at("2024-02-29 10:00"))
        );
        assert_eq!(
            Span::months(1).before(at("2024-03-31 10:00")),
            Some(at("2024-02-29 10:00"))
        );
        assert_eq!(
            Span::days(2555).before(at("2026-11-23 00:00")),
            Some(at("2019-11-25 00:00"))
        );
        assert_eq!(Span::months(i32::MAX).after(at("2024-01-31 10:00")), None);
    }

    #[test]
    fn only_forward_spans_are_positive() {
        assert!(Span::days(1).is_positive());
        assert!(!Span::default().is_positive());
        assert!(
            !Span {
                months: 12,
                days: -1,
                micros: 0
            }
            .is_positive()
        );
    }

    proptest! {
        #[test]
        fn never_panics(months: i32, days: i32, micros: i64, local in -60_000_000_000_000_000i64..250_000_000_000_000_000) {
            let span = Span { months, days, micros };
            let local = crate::calendar::from_postgres_micros(local).unwrap();
            let _ = span.after(local);
            let _ = span.before(local);
            let _ = span.approximate_days();
        }

        #[test]
        fn parsing_never_panics(text in "\\PC*") {
            let _ = text.parse::<Span>();
        }
    }
}
