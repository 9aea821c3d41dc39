//! Short ways to run SQL in a test: what must succeed panics with the server's own words where it does not.

use postgres::error::DbError;
use postgres::{Client, SimpleQueryMessage};

/// SQL in, text out.
pub trait Session {
    /// Runs statements that must succeed.
    fn run(&mut self, sql: &str);
    /// All rows of a query that must succeed; null is `null`.
    fn rows(&mut self, sql: &str) -> Vec<Vec<String>>;
    /// First column of all rows.
    fn column(&mut self, sql: &str) -> Vec<String>;
    /// First column of the only row.
    fn value(&mut self, sql: &str) -> String;
    /// The same as a number.
    fn number(&mut self, sql: &str) -> i64;
    /// The same as a truth value.
    fn holds(&mut self, sql: &str) -> bool;
    /// First column of the only row, or the SQLSTATE of the error.
    fn outcome(&mut self, sql: &str) -> Result<String, String>;
    /// The error of a statement that must fail.
    fn error(&mut self, sql: &str) -> DbError;
    /// The SQLSTATE of a statement: `00000` where it succeeds.
    fn sqlstate(&mut self, sql: &str) -> String;
}

fn try_query(client: &mut Client, sql: &str) -> Result<Vec<Vec<String>>, postgres::Error> {
    let rows = client.simple_query(sql)?.into_iter();
    Ok(rows
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(
                (0..row.len())
                    .map(|index| row.get(index).unwrap_or("null").to_owned())
                    .collect(),
            ),
            _ => None,
        })
        .collect())
}

#[track_caller]
fn query(client: &mut Client, sql: &str) -> Vec<Vec<String>> {
    match try_query(client, sql) {
        Ok(rows) => rows,
        Err(error) => panic!("{error:?}\nin: {sql}"),
    }
}

/// What the server said; a broken connection is no answer.
#[track_caller]
fn answer(error: &postgres::Error, sql: &str) -> DbError {
    match error.as_db_error() {
        Some(error) => error.clone(),
        None => panic!("{error:?}\nin: {sql}"),
    }
}

impl Session for Client {
    #[track_caller]
    fn run(&mut self, sql: &str) {
        query(self, sql);
    }

    #[track_caller]
    fn rows(&mut self, sql: &str) -> Vec<Vec<String>> {
        query(self, sql)
    }

    #[track_caller]
    fn column(&mut self, sql: &str) -> Vec<String> {
        query(self, sql)
            .into_iter()
            .map(|mut row| row.swap_remove(0))
            .collect()
    }

    #[track_caller]
    fn value(&mut self, sql: &str) -> String {
        let mut column = self.column(sql);
        assert_eq!(column.len(), 1, "not one row from: {sql}");
        column.swap_remove(0)
    }

    #[track_caller]
    fn number(&mut self, sql: &str) -> i64 {
        let value = self.value(sql);
        value
            .parse()
            .unwrap_or_else(|_| panic!("{value} is no number, from: {sql}"))
    }

    #[track_caller]
    fn holds(&mut self, sql: &str) -> bool {
        self.value(sql) == "t"
    }

    #[track_caller]
    fn outcome(&mut self, sql: &str) -> Result<String, String> {
        match try_query(self, sql) {
            Ok(mut rows) => {
                assert_eq!(rows.len(), 1, "not one row from: {sql}");
                Ok(rows.swap_remove(0).swap_remove(0))
            }
            Err(error) => Err(answer(&error, sql).code().code().to_owned()),
        }
    }

    #[track_caller]
    fn error(&mut self, sql: &str) -> DbError {
        match self.simple_query(sql) {
            Ok(_) => panic!("no error from: {sql}"),
            Err(error) => answer(&error, sql),
        }
    }

    #[track_caller]
    fn sqlstate(&mut self, sql: &str) -> String {
        match self.simple_query(sql) {
            Ok(_) => "00000".to_owned(),
            Err(error) => answer(&error, sql).code().code().to_owned(),
        }
    }
}
