//! Reads lists and objects in JSON that others wrote: a value of another type counts as empty.

use serde_json::Value;

/// The items of a list.
pub fn items(list: &Value) -> impl DoubleEndedIterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// The strings of a list; its other items are left out.
pub fn strings(list: &Value) -> impl DoubleEndedIterator<Item = &str> {
    items(list).filter_map(Value::as_str)
}

/// The strings of a list, or a single one, which the engine takes for a list of one.
pub fn one_or_more(value: &Value) -> impl Iterator<Item = &str> {
    strings(value).chain(value.as_str())
}

/// The fields of an object, in their order.
pub fn fields(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object.as_object().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_of_another_kind_is_an_empty_list_or_object() {
        let mixed = json!(["a", 1, null, "b"]);
        assert_eq!(one_or_more(&mixed).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(one_or_more(&json!("a")).collect::<Vec<_>>(), ["a"]);
        assert_eq!(strings(&mixed).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(items(&mixed).count(), 4);
        assert_eq!(fields(&json!({"x": 1})).collect::<Vec<_>>(), [(&"x".to_string(), &json!(1))]);
        for other in [json!("a"), json!(null), json!(1)] {
            assert_eq!((items(&other).count(), strings(&other).count(), fields(&other).count()), (0, 0, 0));
        }
        assert_eq!((items(&json!({"x": 1})).count(), fields(&mixed).count()), (0, 0));
    }
}
