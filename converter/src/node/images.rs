//! `clipper node images`: the lazy images of the node.
use super::{
    client::{Daemon, proto::ImagesRequest, refused},
    table::lines,
};
use crate::{
    cli::Common,
    report::{human, percent},
};
use anyhow::Result;

/// Digits of a chain ID that are shown.
const DIGITS: usize = 12;

/// Runs the command.
pub async fn run(common: &Common, daemon: &mut Daemon) -> Result<()> {
    let answer = daemon.api.images(ImagesRequest {}).await.map_err(refused)?.into_inner();
    if common.json {
        println!("{}", serde_json::to_string_pretty(&answer)?);
        return Ok(());
    }
    let head = ["image", "chain", "layers", "size", "cached", "%", "containers", "state"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for image in answer.images {
        let fills = |state: &str| image.layers.iter().any(|layer| layer.fill == state);
        let state = match image.mounted {
            true if image.cached == image.size => "mounted, complete",
            true if fills("running") => "mounted, being loaded",
            true => "mounted",
            false => "not mounted",
        };
        let chain = image.chain.trim_start_matches("sha256:").chars().take(DIGITS).collect();
        rows.push(vec![
            image.name,
            chain,
            image.layers.len().to_string(),
            human(image.size),
            human(image.cached),
            format!("{:.1}", percent(image.cached, image.size)),
            image.containers.to_string(),
            state.to_owned(),
        ]);
    }
    lines(&rows, &[2, 3, 4, 5, 6]).iter().for_each(|line| println!("{line}"));
    Ok(())
}
