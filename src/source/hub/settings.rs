//! The hub's address, token, cache folder and timeouts: from the user's options, else from the environment.

use super::remote::Remote;
use crate::error::{Error, Result};
use std::path::PathBuf;
use std::time::Duration;

/// The resolved settings.
#[derive(Clone)]
pub(super) struct Settings {
    /// Without a slash at its end.
    pub endpoint: String,
    pub cache: PathBuf,
    pub token: Option<String>,
    pub offline: bool,
    /// Attempts in all, for failures that may pass.
    pub attempts: u32,
    /// The wait before the second attempt; it doubles before each later one.
    pub pause: Duration,
    /// Longest Retry-After that is honoured.
    pub longest_pause: Duration,
    /// The timeout of a metadata request.
    pub request_timeout: Duration,
    /// The timeout of a download that receives no data.
    pub download_timeout: Duration,
}

const ENDPOINT: &str = "https://huggingface.co";

impl Settings {
    /// `env` reads the environment.
    pub fn resolve(remote: &Remote, env: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let env = |name: &str| env(name).filter(|value| !value.trim().is_empty());
        let endpoint = remote.endpoint.clone().or_else(|| env("HF_ENDPOINT")).unwrap_or_else(|| ENDPOINT.into());
        let endpoint = endpoint.trim().trim_end_matches('/').to_string();
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            let problem = format!("{endpoint:?} should begin with https:// (Source::endpoint, HF_ENDPOINT)");
            return Err(Error::invalid("the hub's address", problem));
        }
        let user = env("HOME").or_else(|| env("USERPROFILE"));
        let path = |text: String| {
            let text = expanded(&text, env);
            match (text.strip_prefix("~/"), &user) {
                (Some(rest), Some(user)) => PathBuf::from(user).join(rest),
                _ => PathBuf::from(text),
            }
        };
        let home = env("HF_HOME")
            .map(path)
            .or_else(|| env("XDG_CACHE_HOME").map(|folder| path(folder).join("huggingface")))
            .or_else(|| user.as_ref().map(|user| PathBuf::from(user).join(".cache/huggingface")));
        let cache = remote
            .cache
            .clone()
            .or_else(|| env("HF_HUB_CACHE").or_else(|| env("HUGGINGFACE_HUB_CACHE")).map(path))
            .or_else(|| home.as_ref().map(|home| home.join("hub")));
        let Some(cache) = cache else {
            let problem = "has no folder: set HF_HOME or Source::cache_dir (HOME is not set either)";
            return Err(Error::invalid("the hub's cache", problem));
        };
        let is_set = |name: &str| env(name).is_some_and(|v| ["1", "true", "yes", "on"].contains(&&*v.to_lowercase()));
        let stored = || {
            let file = env("HF_TOKEN_PATH").map(path).or_else(|| Some(home.as_ref()?.join("token")))?;
            std::fs::read_to_string(file).ok()
        };
        let implicit = || if is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN") { None } else { env("HF_TOKEN").or_else(stored) };
        let token = remote.token.clone().or_else(implicit).map(|token| token.trim().to_string());
        let token = token.filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| !token.bytes().all(|b| b.is_ascii_graphic())) {
            let problem = "contains characters that are invalid in a token; check that it was pasted correctly";
            return Err(Error::invalid("the hub's token", problem));
        }
        let seconds = |name: &str, default: u64| -> Result<Duration> {
            let Some(text) = env(name) else { return Ok(Duration::from_secs(default)) };
            let wrong = || Error::invalid(name, format!("{text:?} should be a number of seconds, 1 to 86400"));
            let seconds: f64 = text.trim().parse().map_err(|_| wrong())?;
            if (1.0..=86400.0).contains(&seconds) { Ok(Duration::from_secs_f64(seconds)) } else { Err(wrong()) }
        };
        Ok(Self {
            endpoint,
            cache,
            token,
            offline: remote.offline
                || is_set(if env("HF_HUB_OFFLINE").is_some() { "HF_HUB_OFFLINE" } else { "TRANSFORMERS_OFFLINE" }),
            attempts: 5,
            pause: Duration::from_millis(300),
            longest_pause: Duration::from_mins(1),
            request_timeout: seconds("HF_HUB_ETAG_TIMEOUT", 30)?,
            download_timeout: seconds("HF_HUB_DOWNLOAD_TIMEOUT", 60)?,
        })
    }
}

/// Expands `$NAME` and `${NAME}` in a path, as Python does. Variables without a value stay as they are.
fn expanded(text: &str, env: impl Fn(&str) -> Option<String>) -> String {
    let mut parts = text.split('$');
    let mut expanded = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let braced = part.strip_prefix('{').and_then(|part| part.split_once('}'));
        let end = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(part.len());
        let (name, rest) = braced.unwrap_or_else(|| part.split_at(end));
        match env(name) {
            Some(value) => expanded.extend([value.as_str(), rest]),
            None => expanded.extend(["$", part]),
        }
    }
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn resolve(remote: &Remote, env: &[(&str, &str)]) -> Result<Settings> {
        let env: HashMap<&str, &str> = env.iter().copied().collect();
        Settings::resolve(remote, |name| env.get(name).map(ToString::to_string))
    }

    fn remote() -> Remote {
        Remote::new("acme/x".into())
    }

    #[test]
    fn the_cache_is_where_python_puts_it() {
        let cache = |env: &[(&str, &str)]| resolve(&remote(), env).unwrap().cache;
        let home = ("HOME", "/home/u");
        assert_eq!(cache(&[home]), PathBuf::from("/home/u/.cache/huggingface/hub"));
        assert_eq!(cache(&[home, ("XDG_CACHE_HOME", "/x")]), PathBuf::from("/x/huggingface/hub"));
        assert_eq!(cache(&[home, ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/h")]), PathBuf::from("/home/u/h/hub"));
        assert_eq!(cache(&[home, ("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/o")]), PathBuf::from("/o"));
        let all = [home, ("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/o"), ("HF_HUB_CACHE", "/c")];
        assert_eq!(cache(&all), PathBuf::from("/c"));
        assert_eq!(cache(&[home, ("HF_HUB_CACHE", "  ")]), PathBuf::from("/home/u/.cache/huggingface/hub"));
        for (written, meant) in [
            ("$HOME/h", "/home/u/h"),
            ("/a/${HOME}b", "/a//home/ub"),
            ("/a$HOME", "/a/home/u"),
            ("/$NONE/${ALSO}/$", "/$NONE/${ALSO}/$"),
            ("/${HOME", "/${HOME"),
        ] {
            assert_eq!(cache(&[home, ("HF_HUB_CACHE", written)]), PathBuf::from(meant), "{written}");
        }
        let said = Remote { cache: Some("/mine".into()), ..remote() };
        assert_eq!(resolve(&said, &all).unwrap().cache, PathBuf::from("/mine"));
        assert!(resolve(&remote(), &[]).err().unwrap().to_string().contains("HF_HOME"));
    }

    #[test]
    fn tokens_are_found_and_never_printed() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        std::fs::write(dir.path().join("token"), "hf_stored\n").unwrap();
        std::fs::write(dir.path().join("other"), "hf_other").unwrap();
        let other = dir.path().join("other");
        let token = |env: &[(&str, &str)]| resolve(&remote(), &[&[("HF_HOME", home)], env].concat()).unwrap().token;
        assert_eq!(token(&[]).as_deref(), Some("hf_stored"));
        assert_eq!(token(&[("HF_TOKEN_PATH", other.to_str().unwrap())]).as_deref(), Some("hf_other"));
        assert_eq!(token(&[("HF_TOKEN", " hf_env ")]).as_deref(), Some("hf_env"));
        assert_eq!(token(&[("HF_TOKEN", "hf_env"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        let said = Remote { token: Some("hf_secret".into()), ..remote() };
        let env = [("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "True")];
        assert_eq!(resolve(&said, &env).unwrap().token.as_deref(), Some("hf_secret"));
        assert!(!format!("{said:?}").contains("secret"));
        let none = Remote { token: Some(" ".into()), ..remote() };
        assert_eq!(resolve(&none, &[("HF_HOME", home), ("HF_TOKEN", "hf_env")]).unwrap().token, None);
        let odd = Remote { token: Some("hf_sec ret".into()), ..remote() };
        assert!(!resolve(&odd, &env).err().unwrap().to_string().contains("ret\""));
    }

    #[test]
    fn the_rest() {
        let home = ("HOME", "/home/u");
        let settings = resolve(&remote(), &[home]).unwrap();
        assert_eq!((settings.endpoint.as_str(), settings.offline), ("https://huggingface.co", false));
        let settings = resolve(&remote(), &[home, ("HF_ENDPOINT", "http://hub.example/"), ("HF_HUB_OFFLINE", "ON")]);
        let settings = settings.unwrap();
        assert_eq!((settings.endpoint.as_str(), settings.offline), ("http://hub.example", true));
        let both = [home, ("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")];
        assert!(!resolve(&remote(), &both).unwrap().offline);
        assert!(resolve(&remote(), &[home, both[2]]).unwrap().offline);
        assert!(resolve(&remote(), &[home, ("HF_ENDPOINT", "hub.example")]).is_err());
        let settings = resolve(&remote(), &[home, ("HF_HUB_ETAG_TIMEOUT", "3")]).unwrap();
        assert_eq!(
            (settings.request_timeout, settings.download_timeout),
            (Duration::from_secs(3), Duration::from_mins(1))
        );
        for odd in ["soon", "0", "-1", "nan", "1e9"] {
            assert!(resolve(&remote(), &[home, ("HF_HUB_DOWNLOAD_TIMEOUT", odd)]).is_err(), "{odd}");
        }
    }
}
