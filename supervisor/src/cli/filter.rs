//! `ps --filter`: which containers are shown. Pure.

use std::str::FromStr;

use holdfast_proto::supervisor as pb;

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    /// A part of the name.
    Name(String),
    /// The beginning of the id.
    Id(String),
    /// The word for its state.
    Status(String),
    /// A label, with a value or with any.
    Label(String, Option<String>),
}

/// Why a text is no filter.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a filter: name=PART, id=BEGINNING, status=STATUS or label=KEY[=VALUE]")]
pub(super) struct NoFilter(String);

impl FromStr for Filter {
    type Err = NoFilter;

    fn from_str(text: &str) -> Result<Self, NoFilter> {
        let wrong = || NoFilter(text.to_owned());
        let (key, value) = text.split_once('=').filter(|(_, value)| !value.is_empty()).ok_or_else(wrong)?;
        match key {
            "name" => Ok(Self::Name(value.to_owned())),
            "id" => Ok(Self::Id(value.to_owned())),
            "status" => Ok(Self::Status(value.to_owned())),
            "label" => match value.split_once('=') {
                Some(("", _)) => Err(wrong()),
                Some((key, value)) => Ok(Self::Label(key.to_owned(), Some(value.to_owned()))),
                None => Ok(Self::Label(value.to_owned(), None)),
            },
            _ => Err(wrong()),
        }
    }
}

impl Filter {
    fn matches(&self, c: &pb::Container) -> bool {
        match self {
            Self::Name(part) => c.name.contains(part),
            Self::Id(beginning) => c.id.starts_with(beginning),
            Self::Status(status) => c.status == *status,
            Self::Label(key, value) => {
                c.labels.get(key).is_some_and(|is| value.as_ref().is_none_or(|value| is == value))
            }
        }
    }
}

/// Whether a container is wanted. As with Docker, one of several names, ids or states is enough, but all labels must be
/// there.
pub(super) fn wanted(filters: &[Filter], c: &pb::Container) -> bool {
    let kinds: [fn(&Filter) -> bool; 3] =
        [|f| matches!(f, Filter::Name(_)), |f| matches!(f, Filter::Id(_)), |f| matches!(f, Filter::Status(_))];
    let any_of = |kind: &fn(&Filter) -> bool| {
        let mut same = filters.iter().filter(|f| kind(f)).peekable();
        same.peek().is_none() || same.any(|f| f.matches(c))
    };
    kinds.iter().all(any_of) && filters.iter().filter(|f| matches!(f, Filter::Label(..))).all(|f| f.matches(c))
}

/// Whether containers that do not run are asked for.
pub(super) fn is_about_status(filters: &[Filter]) -> bool {
    filters.iter().any(|f| matches!(f, Filter::Status(_)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shown(filters: &[&str]) -> bool {
        let web = pb::Container {
            id: "0123abcd".into(),
            name: "web-1".into(),
            status: "exited".into(),
            labels: [("tier".to_owned(), "front".to_owned()), ("debug".to_owned(), String::new())].into(),
            ..Default::default()
        };
        let filters: Vec<Filter> = filters.iter().map(|f| f.parse().unwrap()).collect();
        wanted(&filters, &web)
    }

    #[test]
    fn one_name_id_or_status_is_enough_and_all_labels_are_needed() {
        for filters in [
            vec![],
            vec!["name=web"],
            vec!["name=db", "name=eb-"],
            vec!["id=0123"],
            vec!["status=running", "status=exited"],
            vec!["label=tier"],
            vec!["label=tier=front", "label=debug"],
            vec!["name=web", "status=exited", "label=debug="],
        ] {
            assert!(shown(&filters), "{filters:?}");
        }
        for filters in [
            vec!["name=db"],
            vec!["id=123"],
            vec!["status=running"],
            vec!["label=tier=back"],
            vec!["label=tier", "label=other"],
            vec!["name=web", "status=running"],
        ] {
            assert!(!shown(&filters), "{filters:?}");
        }
    }

    #[test]
    fn what_is_no_filter_is_named() {
        for bad in ["", "name", "name=", "nome=x", "=x", "label=", "label==x"] {
            assert_eq!(bad.parse::<Filter>(), Err(NoFilter(bad.to_owned())));
        }
        assert!(is_about_status(&["status=exited".parse().unwrap()]));
        assert!(!is_about_status(&["name=exited".parse().unwrap()]));
    }
}
