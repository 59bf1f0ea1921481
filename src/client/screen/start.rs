//! Before the login: the start menu and its questions. The user can back out of each.

use super::password_dialog::{LOG_IN, REGISTER, REGISTER_KEY};
use super::prompter::Prompter;
use crate::client::error::StartError;
use crate::client::net::connect::{Connection, connect, known_servers};
use crate::client::net::login::{self, LoggedIn};
use crate::client::options::Options;
use crate::client::password_file;
use crate::crypto::key_file::KeyFileError;
use crate::name::Username;
use std::io;
use std::path::PathBuf;

/// Asks until a login succeeds; `None` if the user leaves.
///
/// # Errors
/// If the terminal is gone.
pub fn ask(options: &Options, prompter: &mut Prompter<'_>) -> io::Result<Option<(Connection, LoggedIn)>> {
    let mut file = options.password_file.clone();
    let mut chosen = options.user.clone().map(|name| (name, options.register));
    loop {
        if let Some((name, register)) = chosen.take()
            && let Some(login) = with_name(options, &mut file, prompter, name, register)?
        {
            return Ok(Some(login));
        }
        prompter.println("\n  1  create an account\n  2  log in\n  3  exit")?;
        let Some(choice) = prompter.line("> ")? else {
            return Ok(None);
        };
        let register = match choice.trim() {
            "1" => true,
            "2" => false,
            "3" | "exit" | "quit" | "/exit" | "q" => return Ok(None),
            "" => continue,
            _ => {
                prompter.println("type 1, 2 or 3")?;
                continue;
            }
        };
        chosen = ask_name(prompter, register)?.map(|name| (name, register));
    }
}

fn ask_name(prompter: &mut Prompter<'_>, register: bool) -> io::Result<Option<Username>> {
    loop {
        let Some(line) = prompter.line("name: ")? else {
            return Ok(None);
        };
        match line.trim().parse::<Username>() {
            // The server refuses it, too, but only after the password.
            Ok(name) if register && name.is_reserved() => {
                prompter.println(&format!("the name {} is reserved: choose another", name.as_str()))?;
            }
            Ok(name) => return Ok(Some(name)),
            Err(_) if line.trim().is_empty() => return Ok(None),
            Err(error) => prompter.println(error)?,
        }
    }
}

/// Takes the password from `file` until it turns out to be wrong, then asks until one is right: a user who types the
/// next password must not be back at the menu, which shows what is typed.
fn with_name(
    options: &Options,
    file: &mut Option<PathBuf>,
    prompter: &mut Prompter<'_>,
    name: Username,
    register: bool,
) -> io::Result<Option<(Connection, LoggedIn)>> {
    let path = options.key_path(&name);
    let questions = match (register, path.exists()) {
        (false, true) => LOG_IN,
        (false, false) => {
            prompter.println(&StartError::NoKey(name, path).to_string())?;
            return Ok(None);
        }
        (true, true) => {
            prompter
                .println(&format!("this machine has a key for {name}: it will be used for the account"))?;
            REGISTER_KEY
        }
        (true, false) => REGISTER,
    };
    loop {
        let password = match file.as_deref().map(password_file::read) {
            Some(Ok(password)) => Some(password),
            unreadable => {
                if let Some(Err(error)) = unreadable {
                    prompter.println(&error.to_string())?;
                    *file = None;
                }
                prompter.password(questions)?
            }
        };
        let Some(password) = password.filter(|password| !password.expose().is_empty()) else {
            return Ok(None);
        };
        prompter.busy();
        let attempt = if register {
            let doing = "creating your keys and your account ...";
            login::register(options, &name, &password, || connect_asking(options, prompter, doing))
        } else {
            login::log_in(options, &name, &password, || connect_asking(options, prompter, "logging in ..."))
        };
        let error = match attempt {
            Ok(done) => return Ok(Some(done)),
            Err(error) => error,
        };
        prompter.println(&error.to_string())?;
        let is_wrong = matches!(
            error,
            StartError::Login
                | StartError::OtherPassword
                | StartError::OtherKey(..)
                | StartError::ShortPassword
                | StartError::KeyFile(KeyFileError::WrongPassword)
        );
        if (is_wrong || matches!(error, StartError::KeyFile(_))) && file.take().is_some() {
            prompter.println("the password from --password-file does not work here: type the password")?;
        }
        // Another password does not help if the name is taken or the key is damaged.
        if !is_wrong {
            return Ok(None);
        }
    }
}

/// Connects, which may take long if the server does not answer; asks about an unknown server; then prints what is done
/// next.
fn connect_asking(
    options: &Options,
    prompter: &mut Prompter<'_>,
    doing: &str,
) -> Result<Connection, StartError> {
    let _ = prompter.println("connecting ...");
    let mut is_declined = false;
    let connection = connect(options, |seen| {
        let server = options.server();
        let known = known_servers(options).ok();
        let seen_before = match known.as_ref().and_then(|known| known.doubt(&server)) {
            None => "is new to this client".into(),
            Some(aside) => {
                format!("may be one whose record was damaged (the record is now in {})", aside.display())
            }
        };
        let told = prompter.println(&format!(
            "the server at {server} {seen_before}; its fingerprint is\n  {seen}\n\
             compare it with the one that the server printed when it started:\n\
             if they differ, someone may be intercepting the connection"
        ));
        let answer = told.and_then(|()| prompter.line("do they match? (yes/no) "));
        prompter.busy();
        let answer = answer.ok().flatten().unwrap_or_default().trim().to_ascii_lowercase();
        is_declined = !["y", "yes"].contains(&answer.as_str());
        !is_declined
    });
    let connection = connection
        .map_err(|error| if is_declined { StartError::Declined(options.server()) } else { error })?;
    // The next question notices if the terminal is gone.
    let _ = prompter.println(doing);
    Ok(connection)
}
