//! `abd template`: the appliance's template as a file and in pools.

use super::{Session, TemplateCommand, connect, find_sr};
use crate::error::{Error, Kind, Result};
use crate::pool::Pool;
use crate::report::table;
use crate::template;
use serde_json::json;

pub(super) async fn run(session: &Session, command: TemplateCommand) -> Result<()> {
    match command {
        TemplateCommand::Build { disk, out } => {
            let built = template::build(&disk, &out)?;
            session.report.answer(&built, || {
                let size = blocks::ByteCount::new(built.size);
                format!("{}: {size}, version {}, disk {}", built.path.display(), built.version, built.digest)
            });
            Ok(())
        }
        TemplateCommand::Import { file, pool, sr } => {
            let pool = connect(session, pool.as_deref()).await?;
            let result = async {
                let sr = find_sr(&pool, sr.as_deref()).await?;
                template::import(&pool, &file, Some(&sr), &session.report).await
            };
            let result = result.await;
            pool.close().await;
            let (template, imported) = result?;
            session.report.answer(
                &json!({"uuid": template.uuid, "version": template.version, "imported": imported}),
                || {
                    let what = if imported { "imported" } else { "was there already" };
                    format!("template {} {what}: {}", template.version, template.uuid)
                },
            );
            Ok(())
        }
        TemplateCommand::List { pool } => {
            let pool = connect(session, pool.as_deref()).await?;
            let templates = template::list(&pool).await;
            pool.close().await;
            let rows: Vec<_> = templates?
                .into_iter()
                .map(|template| vec![template.uuid, template.version, template.digest])
                .collect();
            let value = rows.iter().map(|row| json!({"uuid": row[0], "version": row[1], "digest": row[2]}));
            session.report.answer(&json!({"templates": value.collect::<Vec<_>>()}), || {
                table(&["UUID", "VERSION", "DISK"], &rows)
            });
            Ok(())
        }
        TemplateCommand::Remove { uuid, pool } => {
            let pool = connect(session, pool.as_deref()).await?;
            let result = remove_templates(&pool, uuid.as_deref()).await;
            pool.close().await;
            let removed = result?;
            session
                .report
                .answer(&json!({"removed": removed}), || format!("{} templates removed", removed.len()));
            Ok(())
        }
    }
}

async fn remove_templates(pool: &Pool, uuid: Option<&str>) -> Result<Vec<String>> {
    let mut templates = template::list(pool).await?;
    templates.retain(|template| uuid.is_none_or(|uuid| template.uuid == uuid));
    if let (Some(uuid), true) = (uuid, templates.is_empty()) {
        return Err(Error::new(Kind::NotFound, format!("no template of ours has the uuid {uuid}"))
            .remedy("see `abd template list`"));
    }
    for template in &templates {
        template::remove(pool, template).await?;
    }
    Ok(templates.into_iter().map(|template| template.uuid).collect())
}
