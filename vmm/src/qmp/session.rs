//! One client's conversation: negotiation, then commands one after the other.
//!
//! Pure protocol: messages in, lines into the [`Outbox`]. Runs in the main context; commands of
//! different sessions interleave at their awaits, those of one session do not, but for those out of band.

use std::cell::Cell;
use std::sync::Arc;

use futures_util::future::{self, Either};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::commands::{self, Command, Monitor};
use super::error::QmpError;
use super::input::{self, Scalars};
use super::json::{self, JsonError};
use super::outbox::Outbox;

/// The release of QEMU whose protocol is followed; clients decide by it which arguments they may
/// use.
pub(super) const PROTOCOL_VERSION: Version = Version {
    qemu: Triple {
        micro: 0,
        minor: 0,
        major: 10,
    },
    package: concat!("sluice-", env!("CARGO_PKG_VERSION")),
};

/// The only command before the negotiation is over, and none after.
pub(super) const NEGOTIATION: &str = "qmp_capabilities";

/// The member of the greeting.
const GREETING: &str = "QMP";
/// The member that names a command.
const EXECUTE: &str = "execute";
/// The same for one that does not wait for its turn.
const OUT_OF_BAND: &str = "exec-oob";
/// The member with a command's arguments.
const ARGUMENTS: &str = "arguments";
/// The member that comes back in the reply.
const ID: &str = "id";

/// The answer to `query-version`, and part of the greeting.
#[derive(Clone, Copy, Debug, JsonSchema, Serialize)]
pub(super) struct Version {
    qemu: Triple,
    package: &'static str,
}

#[derive(Clone, Copy, Debug, JsonSchema, Serialize)]
struct Triple {
    micro: u8,
    minor: u8,
    major: u8,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Triple {
            micro,
            minor,
            major,
        } = self.qemu;
        write!(f, "{major}.{minor}.{micro}")
    }
}

/// What a monitor begins with; its members in QEMU's order.
#[derive(Serialize)]
struct Greeting {
    #[serde(rename = "QMP")]
    qmp: GreetingContent,
}

#[derive(Serialize)]
struct GreetingContent {
    version: Version,
    capabilities: [Capability; 1],
}

/// The answer to a message; its members in QEMU's order.
#[derive(Serialize)]
#[serde(untagged)]
enum Reply {
    Done {
        #[serde(rename = "return")]
        value: Value,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<Value>,
    },
    Failed {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<Value>,
        error: QmpError,
    },
}

/// What is to be done when the reply is on its way.
pub(super) type AfterReply = fn(&Monitor);

/// One client's conversation.
pub(super) struct Session {
    monitor: Arc<Monitor>,
    outbox: Arc<Outbox>,
    negotiated: Cell<bool>,
    /// The client may send commands out of band.
    oob: Cell<bool>,
}

impl Session {
    /// Begins a conversation with the greeting.
    pub(super) fn new(monitor: Arc<Monitor>, outbox: Arc<Outbox>) -> Self {
        let session = Self {
            monitor,
            outbox,
            negotiated: Cell::new(false),
            oob: Cell::new(false),
        };
        session.say(&Greeting {
            qmp: GreetingContent {
                version: PROTOCOL_VERSION,
                capabilities: [Capability::Oob],
            },
        });
        session
    }

    /// Whether the client may send commands out of band.
    pub(super) fn has_oob(&self) -> bool {
        self.oob.get()
    }

    /// Whether a message is what a monitor begins with, and no client of one ever says.
    pub(super) fn is_greeting(message: &Result<Value, JsonError>) -> bool {
        let members = message.as_ref().ok().and_then(Value::as_object);
        members.is_some_and(|members| members.contains_key(GREETING))
    }

    /// Whether a message wants to be executed before those that wait.
    pub(super) fn is_out_of_band(&self, message: &Result<Value, JsonError>) -> bool {
        let members = message.as_ref().ok().and_then(Value::as_object);
        self.oob.get()
            && members.is_some_and(|members| {
                members.contains_key(OUT_OF_BAND) && !members.contains_key(EXECUTE)
            })
    }

    /// Executes one message and queues the reply. Returns what must wait until the client has it.
    pub(super) async fn handle(&self, message: Result<Value, JsonError>) -> Option<AfterReply> {
        let (id, result) = match message {
            Err(error) => (None, Err(error.into())),
            Ok(message) => {
                let id = message
                    .as_object()
                    .and_then(|object| object.get(ID))
                    .cloned();
                (id, self.execute(message).await)
            }
        };
        let (reply, after) = match result {
            Ok((value, after)) => (Reply::Done { value, id }, after),
            Err(error) => (Reply::Failed { id, error }, None),
        };
        self.say(&reply);
        after
    }

    fn say(&self, message: &impl Serialize) {
        let Some(layout) = self.outbox.layout() else {
            return;
        };
        match json::write(message, layout) {
            Ok(text) => self.outbox.reply(text.into()),
            Err(error) => {
                // No message holds what JSON can't; but a client that waits for ever must not either.
                tracing::error!(%error, "a reply can't be written");
                self.outbox.abandon();
            }
        }
    }

    async fn execute(&self, message: Value) -> Result<(Value, Option<AfterReply>), QmpError> {
        let request = Request::read(message, self.oob.get())?;
        if request.command == NEGOTIATION && !request.out_of_band {
            self.negotiate(request.arguments)?;
            return Ok((json!({}), None));
        }
        if !self.negotiated.get() {
            return Err(QmpError::command_not_found(format!(
                "Expecting capabilities negotiation with '{NEGOTIATION}'"
            )));
        }
        let name = &request.command;
        let command = Command::find(name);
        // The negotiation, which is no command of the table, is not out of band either.
        let unfit =
            name == NEGOTIATION || command.is_some_and(|command| !command.is_allowed_out_of_band());
        if request.out_of_band && unfit {
            let desc = format!("The command {name} does not support OOB");
            return Err(QmpError::generic(desc));
        }
        let command = command.ok_or_else(|| {
            QmpError::command_not_found(format!("The command {name} has not been found"))
        })?;
        let running = command.run(Arc::clone(&self.monitor), request.arguments);
        if !command.only_asks() {
            return Ok((running.await?, command.after_reply()));
        }
        let gone = std::pin::pin!(self.outbox.abandoned());
        match future::select(std::pin::pin!(running), gone).await {
            Either::Left((value, _)) => Ok((value?, command.after_reply())),
            Either::Right(_) => Err(QmpError::generic("The client has hung up")),
        }
    }

    fn negotiate(&self, arguments: Value) -> Result<(), QmpError> {
        let arguments: NegotiationArguments = input::from_value(arguments, Scalars::Typed)?;
        if self.negotiated.get() {
            return Err(QmpError::command_not_found(
                "Capabilities negotiation is already complete, command ignored",
            ));
        }
        let enabled = arguments.enable.unwrap_or_default();
        self.oob.set(enabled.contains(&Capability::Oob));
        self.negotiated.set(true);
        self.outbox.enable_events();
        Ok(())
    }
}

/// Arguments of `qmp_capabilities`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NegotiationArguments {
    enable: Option<Vec<Capability>>,
}

/// The protocol's capabilities.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Capability {
    Oob,
}

/// A message that has the form of a command.
struct Request {
    command: String,
    arguments: Value,
    out_of_band: bool,
}

impl Request {
    fn read(message: Value, may_overtake: bool) -> Result<Self, QmpError> {
        let Value::Object(mut members) = message else {
            return Err(QmpError::generic("QMP input must be a JSON object"));
        };
        let mut command: Option<(&str, String)> = None;
        let mut arguments = Value::Object(Map::new());
        // Of several mistakes that is told of which QEMU would name. With more than one unexpected member that is
        // a matter of its hash table, and not followed.
        let known = |name: &str| match name {
            EXECUTE | ARGUMENTS | ID => true,
            OUT_OF_BAND => may_overtake,
            _ => false,
        };
        if let Some(name) = members.keys().find(|name| !known(name)) {
            let desc = format!("QMP input member '{name}' is unexpected");
            return Err(QmpError::generic(desc));
        }
        for name in [OUT_OF_BAND, EXECUTE] {
            let Some(value) = members.remove(name) else {
                continue;
            };
            let Value::String(value) = value else {
                let desc = format!("QMP input member '{name}' must be a string");
                return Err(QmpError::generic(desc));
            };
            if let Some((other, _)) = &command {
                let desc = format!("QMP input member '{name}' clashes with '{other}'");
                return Err(QmpError::generic(desc));
            }
            command = Some((name, value));
        }
        if let Some(value) = members.remove(ARGUMENTS) {
            if !value.is_object() {
                let desc = format!("QMP input member '{ARGUMENTS}' must be an object");
                return Err(QmpError::generic(desc));
            }
            arguments = value;
        }
        match command {
            Some((member, command)) => Ok(Self {
                command,
                arguments,
                out_of_band: member == OUT_OF_BAND,
            }),
            None => Err(QmpError::generic(format!(
                "QMP input lacks member '{EXECUTE}'"
            ))),
        }
    }
}

/// The names of all commands, for `query-commands`.
pub(super) fn command_names() -> impl Iterator<Item = &'static str> {
    std::iter::once(NEGOTIATION).chain(commands::names())
}
