//! `sluicegate shift`: moves traffic between the versions of a service.

use std::{collections::BTreeMap, fmt::Write as _, str::FromStr};

use anyhow::bail;
use clap::Args;
use config::{ServiceName, Split, SplitError, VersionName};
use hyper::{Method, StatusCode};
use xds_server::api::types::{ServiceView, SplitBody, WriteAnswer};

use crate::{
    client::Client,
    exit::{self, Invalid},
    flags,
    output::{self, percent},
    table::Table,
};

/// How often the split is read again when someone else has changed it meanwhile.
const ATTEMPTS: usize = 5;
/// All of the traffic, in basis points.
const ALL: u32 = 10_000;

/// Shift traffic to a version; the others keep their ratio to one another
#[derive(Args)]
#[command(after_help = exit::help!("  sluicegate shift checkout v2=10%              a tenth to v2, the rest as it was
  sluicegate shift checkout v2=12.5% v3=12.5%
  sluicegate shift checkout v2=100% --wait      returns when every proxy has it
  sluicegate shift checkout v1=9 v2=1           weights; versions not named get nothing"))]
pub(crate) struct Shift {
    /// The service
    service: ServiceName,
    /// VERSION=PERCENT% (up to two decimals), or for all versions VERSION=WEIGHT
    #[arg(required = true, value_name = "VERSION=SHARE")]
    shares: Vec<Share>,
    #[command(flatten)]
    wait: flags::Wait,
    #[command(flatten)]
    api: flags::Api,
}

impl Shift {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let client = self.api.client()?;
        let aim = Aim::new(&self.shares).map_err(Invalid)?;
        let (before, split, answer) = self.write(&client, &aim).await?;
        output::show(&answer, self.api.output, |answer| before_and_after(&before, &split, answer))?;
        output::applied_by_all(&answer)
    }

    /// Reads the split and writes it back shifted, until nobody else has written in between.
    async fn write(&self, client: &Client, aim: &Aim) -> anyhow::Result<(ServiceView, Split, WriteAnswer)> {
        let path = format!("/v1/services/{}", self.service);
        for _ in 0..ATTEMPTS {
            let read = client.call(Method::GET, &path).send().await?;
            let before: ServiceView = read.json()?;
            let split = aim.from(&before).map_err(Invalid)?;
            let call = client
                .call(Method::PUT, format!("{path}/split"))
                .if_match(read.etag.as_deref())
                .json(&SplitBody { weights: split.weights().clone() })
                .wait(self.wait.limit());
            match call.send().await {
                Ok(answer) => return Ok((before, split, answer.json()?)),
                Err(error) if error.is_status(StatusCode::PRECONDITION_FAILED) => {}
                Err(error) => return Err(error.into()),
            }
        }
        bail!("{} was changed by others {ATTEMPTS} times in a row; try again", self.service)
    }
}

/// What one argument asks for: `v2=10%` or `v2=3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    version: VersionName,
    amount: Amount,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Amount {
    BasisPoints(u32),
    Weight(u32),
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (version, amount) = text
            .split_once('=')
            .ok_or_else(|| format!("`{text}` names no share: write for example v2=10%"))?;
        let version = version.parse().map_err(|e| format!("{e}"))?;
        let amount = match amount.strip_suffix('%') {
            Some(number) => Amount::BasisPoints(basis_points(number)?),
            None => Amount::Weight(amount.parse().map_err(|_| {
                format!("`{amount}` is not a share: write a percentage like 10% or a whole weight like 3")
            })?),
        };
        Ok(Self { version, amount })
    }
}

/// `12.5` to 1250. By its digits, because no float is exactly a tenth of a percent.
fn basis_points(number: &str) -> Result<u32, String> {
    let rule = || format!("`{number}%` is not a percentage: write 0% to 100%, with at most two decimals");
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    let digits =
        |text: &str, most| (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole, 3) || !digits(decimals, 2) {
        return Err(rule());
    }
    let points: u32 = format!("{whole}{decimals:0<2}").parse().map_err(|_| rule())?;
    if points <= ALL { Ok(points) } else { Err(rule()) }
}

/// What all arguments together ask for.
#[derive(Debug, PartialEq, Eq)]
enum Aim {
    /// These versions get so many basis points; the others share the rest in their ratio.
    Shares(BTreeMap<VersionName, u32>),
    /// These weights and no others.
    Weights(BTreeMap<VersionName, u32>),
}

impl Aim {
    fn new(shares: &[Share]) -> Result<Self, String> {
        let mut points = BTreeMap::new();
        let mut weights = BTreeMap::new();
        for share in shares {
            let (into, amount) = match share.amount {
                Amount::BasisPoints(amount) => (&mut points, amount),
                Amount::Weight(amount) => (&mut weights, amount),
            };
            if into.insert(share.version.clone(), amount).is_some() {
                return Err(format!("{} is named twice; name each version once", share.version));
            }
        }
        match (points.is_empty(), weights.is_empty()) {
            (false, false) => {
                Err("percentages and weights are mixed; use either for all versions".to_owned())
            }
            (true, _) => Ok(Self::Weights(weights)),
            (false, true) => Ok(Self::Shares(points)),
        }
    }

    /// The split this makes of the service as it is.
    fn from(&self, service: &ServiceView) -> Result<Split, String> {
        let (Self::Shares(asked) | Self::Weights(asked)) = self;
        if let Some(unknown) = asked.keys().find(|v| !service.versions.iter().any(|known| known.name == **v))
        {
            let known: Vec<&str> = service.versions.iter().map(|v| v.name.as_str()).collect();
            return Err(format!("{} has no version {unknown}; it has {}", service.name, known.join(", ")));
        }
        match self {
            Self::Weights(weights) => Split::new(weights.clone()).map_err(|e| e.to_string()),
            Self::Shares(shares) => shifted(service, shares),
        }
    }
}

/// Each version of `shares` at exactly its basis points, the others keeping their ratio.
fn shifted(service: &ServiceView, shares: &BTreeMap<VersionName, u32>) -> Result<Split, String> {
    let sum: u32 = shares.values().sum();
    if sum > ALL {
        return Err(format!("the shares add up to {}, more than 100 %", percent(sum)));
    }
    // One version stands for all that were asked for, so that the rest divides over the others once.
    let (target, _) = shares.first_key_value().ok_or("no share is asked for")?;
    let others = service.versions.iter().filter(|v| !shares.contains_key(&v.name));
    let mut weights: BTreeMap<VersionName, u32> = others.map(|v| (v.name.clone(), v.weight)).collect();
    // Its own weight does not matter, but at least one has to be above 0.
    weights.insert(target.clone(), 1);
    let split = Split::new(weights).map_err(|e| e.to_string())?;
    let split = split.shifted(target, sum).map_err(|error| match error {
        SplitError::Zero => format!(
            "the shares add up to {}, and {} has no other version for the rest; make it 100 %",
            percent(sum),
            service.name
        ),
        SplitError::TooLarge => error.to_string(),
    })?;
    let mut weights = split.weights().clone();
    weights.extend(shares.iter().map(|(version, points)| (version.clone(), *points)));
    Split::new(weights).map_err(|e| e.to_string())
}

fn before_and_after(before: &ServiceView, split: &Split, answer: &WriteAnswer) -> String {
    let mut table = Table::new(["VERSION", ">BEFORE", "", ">AFTER", ">READY"]);
    let mut warnings = String::new();
    for version in &before.versions {
        let after = split.basis_points(&version.name);
        table.row([
            version.name.to_string(),
            percent(version.basis_points),
            "→".to_owned(),
            percent(after),
            version.ready.to_string(),
        ]);
        if after > 0 && version.ready == 0 {
            let _ = writeln!(
                warnings,
                "warning: {} of {} has no ready endpoint for its {}",
                version.name,
                before.name,
                percent(after)
            );
        }
    }
    format!("{table}{warnings}{}\n", output::revision(answer))
}

#[cfg(test)]
mod tests;
