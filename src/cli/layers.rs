//! Where settings come from: flags over environment over file over defaults.
//!
//! A layer holds texts. They are parsed in `resolve`, once, whichever layer they come from, so that
//! a wrong value is refused with the same words everywhere and named in the form in which the user
//! gave it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::error::CliError;
use super::file::FileLayer;
use super::settings::{
    CONFIG_VARIABLE, OTHER_VARIABLES, SETTINGS, SUPERVISOR_DECIDES, Setting, VARIABLE_PREFIX,
};

/// Where a value came from; the lesser wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    Flag,
    Environment,
    File { line: usize },
    Default,
}

impl Origin {
    /// The layer without the place in it: two settings of one layer were given together.
    pub fn layer(self) -> u8 {
        match self {
            Self::Flag => 0,
            Self::Environment => 1,
            Self::File { .. } => 2,
            Self::Default => 3,
        }
    }
}

/// A setting's text, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    pub text: String,
    pub origin: Origin,
}

/// All layers of one start.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    /// By setting's flag.
    pub flags: BTreeMap<&'static str, String>,
    /// By setting's flag.
    pub environment: BTreeMap<&'static str, String>,
    pub file: Option<FileLayer>,
    /// Whether we were started by a supervisor.
    pub supervised: bool,
    /// What the user should hear, though it is no error.
    pub warnings: Vec<String>,
}

/// The settings found in an environment.
#[derive(Debug, Default)]
struct Environment {
    settings: BTreeMap<&'static str, String>,
    config: Option<PathBuf>,
    supervised: bool,
    warnings: Vec<String>,
}

impl Layers {
    /// Joins the flags with the environment and the file that one of the two names.
    pub fn gather(
        flags: BTreeMap<&'static str, String>,
        config_flag: Option<PathBuf>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, CliError> {
        let environment = read_environment(environment)?;
        let named = match (config_flag, environment.config) {
            (Some(path), _) => Some((path, "--config")),
            (None, Some(path)) => Some((path, CONFIG_VARIABLE)),
            (None, None) => None,
        };
        let file = named.map(|(path, given)| FileLayer::read(&path, given)).transpose()?;
        Ok(Self {
            flags,
            environment: environment.settings,
            file,
            supervised: environment.supervised,
            warnings: environment.warnings,
        })
    }

    /// What the topmost layer says that says anything. `None`: no layer does, and there is no
    /// default.
    ///
    /// Who a supervised process is, its supervisor alone decides; the process got the command line
    /// of the whole job.
    pub fn get(&self, setting: &Setting) -> Option<Given> {
        let decided = self.supervised && SUPERVISOR_DECIDES.contains(&setting.flag);
        if decided && let Some(text) = self.environment.get(setting.flag) {
            return Some(Given { text: text.clone(), origin: Origin::Environment });
        }
        if let Some(text) = self.flags.get(setting.flag) {
            return Some(Given { text: text.clone(), origin: Origin::Flag });
        }
        if let Some(text) = self.environment.get(setting.flag) {
            return Some(Given { text: text.clone(), origin: Origin::Environment });
        }
        if let Some((text, line)) = self.file.as_ref().and_then(|file| file.get(setting)) {
            return Some(Given { text, origin: Origin::File { line } });
        }
        let default = setting.default;
        (!default.is_empty()).then(|| Given { text: default.to_owned(), origin: Origin::Default })
    }

    /// The setting in the form in which `origin` gives it.
    pub fn form(&self, setting: &Setting, origin: Origin) -> String {
        match origin {
            Origin::Flag | Origin::Default => format!("--{}", setting.flag),
            Origin::Environment => setting.variable(),
            Origin::File { line } => {
                format!("{}:{line}: {}", self.file_path().display(), setting.path())
            }
        }
    }

    /// The origin as a comment in a printed file says it.
    pub fn describe(&self, setting: &Setting, origin: Origin) -> String {
        match origin {
            Origin::Flag => format!("flag --{}", setting.flag),
            Origin::Environment => format!("environment {}", setting.variable()),
            Origin::File { line } => format!("file {}:{line}", self.file_path().display()),
            Origin::Default => "default".to_owned(),
        }
    }

    fn file_path(&self) -> &Path {
        self.file.as_ref().map_or(Path::new("(no file)"), FileLayer::path)
    }
}

/// Takes our variables from all variables. An empty value counts as unset, as the shell's `VAR=
/// command` means it.
fn read_environment(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Environment, CliError> {
    let mut found = Environment::default();
    let settings: BTreeMap<String, &Setting> =
        SETTINGS.iter().map(|setting| (setting.variable(), setting)).collect();
    for (name, value) in variables {
        let Some(name) = name.to_str().filter(|name| name.starts_with(VARIABLE_PREFIX)) else {
            continue;
        };
        if value.is_empty() {
            continue;
        }
        if name == CONFIG_VARIABLE {
            found.config = Some(PathBuf::from(value));
        } else if let Some(setting) = settings.get(name) {
            let text = value.into_string().map_err(|_| CliError::Value {
                given: name.to_owned(),
                problem: "the value is not valid UTF-8".to_owned(),
            })?;
            found.settings.insert(setting.flag, text);
        } else if OTHER_VARIABLES.contains(&name) {
            found.supervised = true;
        } else {
            let known = settings.keys().map(String::as_str).chain([CONFIG_VARIABLE]);
            let hint = suggestion(name, known);
            found.warnings.push(format!("{name} is set, but there is no such setting{hint}"));
        }
    }
    found.warnings.sort();
    Ok(found)
}

/// ` (did you mean ...?)`, if one of `known` is close to `wrong`.
pub(crate) fn suggestion<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let nearest = known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(wrong, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 4)
        .min();
    nearest.map_or(String::new(), |(_, name)| format!(" (did you mean `{name}`?)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    #[test]
    fn unknown_variables_of_ours_are_warned_about_with_what_was_probably_meant() {
        let given = variables(&[
            ("HIGHWATER_WORKRES", "2"),
            ("HIGHWATER_SUPERVISED", "1"),
            ("HIGHWATER_LOG", "debug"),
            ("HIGHWATER_MIN_PAUSE", ""),
            ("PATH", "/bin"),
        ]);
        let found = read_environment(given).unwrap();
        assert_eq!(
            found.warnings,
            [
                "HIGHWATER_WORKRES is set, but there is no such setting (did you mean `HIGHWATER_WORKERS`?)"
            ]
        );
        assert!(found.supervised);
        assert_eq!(found.settings.into_iter().collect::<Vec<_>>(), [("log", "debug".to_owned())]);
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_no_text_is_an_error_and_a_foreign_one_is_not() {
        use std::os::unix::ffi::OsStringExt;
        let bytes = OsString::from_vec(vec![b'x', 0xFF]);
        let foreign = [(bytes.clone(), bytes.clone()), ("PATH".into(), bytes.clone())];
        assert!(read_environment(foreign).unwrap().settings.is_empty());
        let error = read_environment([("HIGHWATER_LOG".into(), bytes)]).unwrap_err();
        assert_eq!(error.to_string(), "HIGHWATER_LOG: the value is not valid UTF-8");
    }
}
