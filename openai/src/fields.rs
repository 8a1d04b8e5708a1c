//! A JSON object whose fields are taken one by one. What is left in the end is what nobody knew.

use serde_json::{Map, Value};

use crate::error::ApiError;

/// The fields of an object, and where it stands in the body.
#[derive(Debug)]
pub(crate) struct Fields {
    /// Empty for the body itself, else such as `messages[2].`.
    at: String,
    map: Map<String, Value>,
}

impl Fields {
    /// Of a whole body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        if body.is_empty() {
            return Err(ApiError::not_json("the body is empty: send a JSON object"));
        }
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self { at: String::new(), map }),
            Ok(_) => Err(ApiError::not_json("the body has to be a JSON object")),
            Err(error) => Err(ApiError::not_json(format!("the body is not JSON: {error}"))),
        }
    }

    /// Of the value at `at`.
    pub(crate) fn of(value: Value, at: &str) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { at: format!("{at}."), map }),
            other => Err(wrong(at, "an object", &other)),
        }
    }

    /// The whole name of a field.
    pub(crate) fn name(&self, field: &str) -> String {
        format!("{}{field}", self.at)
    }

    /// Looks at a field.
    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field)
    }

    /// Takes a field. `null` is as good as absent.
    pub(crate) fn take(&mut self, field: &str) -> Option<Value> {
        self.map.remove(field).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&mut self, field: &str) -> Result<Option<String>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(field, "a string", &other)),
        }
    }

    /// A text that has to be there.
    pub(crate) fn required_text(&mut self, field: &str) -> Result<String, ApiError> {
        self.text(field)?.ok_or_else(|| self.missing(field))
    }

    pub(crate) fn flag(&mut self, field: &str) -> Result<Option<bool>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.wrong(field, "true or false", &other)),
        }
    }

    pub(crate) fn number(&mut self, field: &str) -> Result<Option<f32>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number as f32)),
                None => Err(self.wrong(field, "a number", &value)),
            },
        }
    }

    /// A number that `accepted` describes and `fits` knows. Before it is rounded to what engines compute with.
    pub(crate) fn number_in(
        &mut self,
        field: &str,
        accepted: &str,
        fits: fn(f64) -> bool,
    ) -> Result<Option<f32>, ApiError> {
        if let Some(value) = self.get(field).filter(|value| value.as_f64().is_some_and(|number| !fits(number))) {
            let name = self.name(field);
            return Err(ApiError::invalid(&name, format!("{name} is {value}; accepted is {accepted}")));
        }
        self.number(field)
    }

    /// A whole number from `from` to `to`. Some clients write 16.0.
    pub(crate) fn integer(&mut self, field: &str, from: i64, to: i64) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        let whole = value.as_i64().or_else(|| {
            let number = value.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < (1u64 << 53) as f64)?;
            Some(number as i64)
        });
        match whole.filter(|number| (from..=to).contains(number)) {
            Some(number) => Ok(Some(number)),
            None if value.is_number() => {
                let name = self.name(field);
                Err(ApiError::invalid(
                    &name,
                    format!("{name} is {value}; accepted is a whole number from {from} to {to}"),
                ))
            }
            None => Err(self.wrong(field, "a whole number", &value)),
        }
    }

    pub(crate) fn list(&mut self, field: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(self.wrong(field, "a list", &other)),
        }
    }

    pub(crate) fn object(&mut self, field: &str) -> Result<Option<Self>, ApiError> {
        let at = self.name(field);
        self.take(field).map(|value| Self::of(value, &at)).transpose()
    }

    /// One text or several.
    pub(crate) fn texts(&mut self, field: &str) -> Result<Vec<String>, ApiError> {
        let name = self.name(field);
        match self.take(field) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text]),
            Some(Value::Array(values)) => {
                let text = |(at, value): (usize, Value)| match value {
                    Value::String(text) => Ok(text),
                    other => Err(wrong(&format!("{name}[{at}]"), "a string", &other)),
                };
                values.into_iter().enumerate().map(text).collect()
            }
            Some(other) => Err(wrong(&name, "a string or a list of strings", &other)),
        }
    }

    /// Refuses a field that cannot be honoured, unless it says what would be done without it.
    pub(crate) fn refuse(&mut self, field: &str, neutral: &[Value], instead: &str) -> Result<(), ApiError> {
        match self.take(field) {
            None => Ok(()),
            Some(value) if neutral.contains(&value) || is_empty(&value) => Ok(()),
            Some(_) => {
                let name = self.name(field);
                Err(ApiError::unsupported(&name, format!("{name} is not supported here: {instead}")))
            }
        }
    }

    /// Takes fields that change nothing of an answer.
    pub(crate) fn skip(&mut self, fields: &[&str]) {
        for field in fields {
            self.map.remove(*field);
        }
    }

    /// The names of the fields that were not taken.
    pub(crate) fn left(self) -> Vec<String> {
        self.map.into_iter().map(|(name, _)| name).collect()
    }

    pub(crate) fn missing(&self, field: &str) -> ApiError {
        let name = self.name(field);
        ApiError::invalid(&name, format!("{name} is missing"))
    }

    pub(crate) fn wrong(&self, field: &str, accepted: &str, value: &Value) -> ApiError {
        wrong(&self.name(field), accepted, value)
    }
}

/// An empty list or object asks for nothing.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// `name` is of another kind than it has to be.
pub(crate) fn wrong(name: &str, accepted: &str, value: &Value) -> ApiError {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    ApiError::invalid(name, format!("{name} has to be {accepted}, and is {kind}"))
}
