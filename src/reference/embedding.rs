//! Embedding: rows of a table by number.

use super::Real;

/// `table[id]` for every id, NaN where there is no such row; `width` elements a row.
pub fn gather<R: Real>(table: &[R], width: usize, ids: &[u32]) -> Vec<R> {
    let row = |&id: &u32| -> Vec<R> {
        let start = id as usize * width;
        table
            .get(start..start + width)
            .map_or(vec![R::nan(); width], <[R]>::to_vec)
    };
    ids.iter().flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gathering_all_rows_in_order_is_the_table() {
        let table: Vec<f64> = (0..12).map(f64::from).collect();
        assert_eq!(gather(&table, 3, &[0, 1, 2, 3]), table);
        assert_eq!(gather(&table, 3, &[2, 2])[3..], table[6..9]);
        assert!(gather(&table, 3, &[4, u32::MAX]).iter().all(|v| v.is_nan()));
    }
}
