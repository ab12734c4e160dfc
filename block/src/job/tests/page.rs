//! The tables of docs/jobs.md, from which tests are generated.

/// The table whose first column is headed `first`: the heads of the others, and for each row its first cell and the others.
/// Without the marks of code.
pub(crate) fn table(first: &str) -> (Vec<String>, Vec<(String, Vec<String>)>) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/jobs.md");
    let page = std::fs::read_to_string(path).unwrap();
    let head = format!("| {first} |");
    let cells = |line: &str| {
        let cells = line.trim_matches('|').split('|');
        cells
            .map(|cell| cell.trim().trim_matches('`').to_owned())
            .collect::<Vec<_>>()
    };
    let mut lines = page.lines().skip_while(|line| !line.starts_with(&head));
    let heads = cells(lines.next().unwrap()).split_off(1);
    let rows = lines
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let mut cells = cells(line);
            let answers = cells.split_off(1);
            (cells.remove(0), answers)
        });
    (heads, rows.collect())
}
